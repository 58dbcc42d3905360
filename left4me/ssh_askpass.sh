#!/bin/sh
# SSH_ASKPASS of left4me/connection.py: ssh runs this instead of prompting. It prints the key's passphrase or the host's
# password, and only for an ssh that left4me started itself: the ssh of a ProxyJump or ProxyCommand is another's child.
set -eu
[ "$(ps -o ppid= -p "$PPID" | tr -d ' ')" = "$LEFT4ME_PID" ] || exit 1
case "$1" in
    # A server can choose the text of a prompt. ssh puts (user@host) before that.
    "Enter passphrase for key "*) answer=${LEFT4ME_KEY_PASSWORD-} ;;
    *"'s password: " | "("*") "*assword:*) answer=${LEFT4ME_SSH_PASSWORD-} ;;
    *) exit 1 ;;
esac
[ -n "$answer" ] || exit 1
printf '%s\n' "$answer"
