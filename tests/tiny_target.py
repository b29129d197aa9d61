"""A target of a few seconds, and ways to be stopped in the middle of it.

It is a module of its own because the processes of the runs import it too.
"""

import os
import signal
import time

from vimae_models import evaluation, training
from vimae_models.reproduce.statistics import difference
from vimae_models.reproduce.target import Target, config

STRUCK = "vimae-n-seed-0"  # the run that is stopped: the second


class Tiny(Target):
    """Two systems on a few digits.

    Args:
        strike: what happens to `STRUCK`: "kill", SIGKILL to all processes, or "interrupt", SIGINT to
            process `pid`, each after two of its three epochs; "interrupt measuring"; "raise", in
            measuring; "die", SIGKILL to its process alone.
        changes: of the configurations.
    """

    name = "tiny"
    title = "Tiny & quick"
    source = "No paper, table 0"
    seeds = {"smoke": 2}

    def __init__(self, strike="", **changes):
        self.strike, self.pid = strike, os.getpid()
        self.changes = {"epochs": 3, "images": 200} | changes

    def configs(self, scale):
        small = {"data": "digits", "network": "mlp", "width": 0.05} | self.changes
        return {name: config(f"{name}/mnist", **small) for name in ("vae", "vimae-n")}

    def __setstate__(self, state):  # in the process of a run
        self.__dict__ |= state
        if self.strike not in ("kill", "interrupt"):
            return
        training.SECONDS_BETWEEN_SAVES = -1.0
        save = training.Recorder.save

        def save_and_strike(recorder, trainer, module):
            save(recorder, trainer, module)
            if recorder.run.name == STRUCK and len(module.history) == 2:
                training.Recorder.save = save
                if self.strike == "kill":
                    os.killpg(0, signal.SIGKILL)
                os.kill(self.pid, signal.SIGINT)
                time.sleep(1)  # until it has told so

        training.Recorder.save = save_and_strike

    def measure(self, trained):
        if trained.folder.name == STRUCK:
            if self.strike == "interrupt measuring":
                os.kill(self.pid, signal.SIGINT)
                time.sleep(600)
            elif self.strike == "raise":
                raise ValueError("no such measure")
            elif self.strike == "die":
                os.kill(os.getpid(), signal.SIGKILL)
        return {"of": evaluation.summary(trained.model, trained.data.test.images[:100])}

    def report(self, page, results, scale):
        ours = {
            label: [
                results.values(label, "of", "mmd"),
                results.values(label, "of", "reconstruction"),
            ]
            for label in self.configs(scale)
        }
        page.comparison("table", ("mmd", "error"), ours, {"vae": (0.5, None)}, digits=3)
        gap = difference(*(results.values(label, "of", "mmd") for label in ours))
        page.claim("vae is further away", "table 0", gap.above(), str(gap))
