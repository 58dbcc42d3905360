"""What runs on a host: the parts of l4d2ctl and of the programs in /usr/local/libexec/left4me, by concern.

Each part is imported only by the commands that use it: the start is most of what a command takes.
"""
