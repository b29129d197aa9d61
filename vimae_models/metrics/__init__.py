"""What trained models are judged by: one function for every measure of the papers."""
