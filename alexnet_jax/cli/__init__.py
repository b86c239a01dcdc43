"""The command line: the verbs of `alexnet`, the flags that they share, config files, and how a process ends."""
