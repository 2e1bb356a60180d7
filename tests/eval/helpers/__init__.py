"""What tests of evaluation share besides fixtures: a judge that misbehaves, reference files, small sets, a terminal."""
