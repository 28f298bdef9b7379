"""Floor 0: the private parts of torch, one file for each; a test fails when torch moves one."""
