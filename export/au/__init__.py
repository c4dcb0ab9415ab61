"""Export of py-feat's AU classifiers: a `.skops` checkpoint -> the models `au` and `action_units`."""
