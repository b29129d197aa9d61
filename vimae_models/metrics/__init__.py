"""What trained models are judged by: one short function per figure of the papers."""
