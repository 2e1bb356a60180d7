"""What tests of training share besides fixtures: runs and their flags, sound, scripts, steps that are measured."""
