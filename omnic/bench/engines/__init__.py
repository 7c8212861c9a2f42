"""Other engines as runners: each is opened in a process of its own, which imports nothing else of the compiler."""
