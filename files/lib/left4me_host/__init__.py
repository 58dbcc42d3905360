"""The host's library: l4d2ctl and the programs in /usr/local/libexec/left4me.

Commands import only the modules they use, because imports are most of their run time.
"""
