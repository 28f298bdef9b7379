"""Learning: `train`, the `Learner` and its loop of phases, steps and callbacks. Imported when it is used."""
