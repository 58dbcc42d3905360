"""The parts of l4d2ctl, each imported only by the commands that use it: the start is most of what a command takes."""
