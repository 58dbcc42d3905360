#!/bin/sh
# SSH_ASKPASS of left4me/connection.py: ssh runs this instead of prompting. It prints the key's passphrase or the host's
# password, never for a jump host (ProxyJump starts ssh -W for it).
set -eu
command=$(ps -o args= -p "$PPID")
case "$command" in *" -W "*) exit 1 ;; esac
case "$1" in
    *passphrase*) answer=${LEFT4ME_KEY_PASSWORD-} ;;
    *assword:*) answer=${LEFT4ME_SSH_PASSWORD-} ;;
    *) exit 1 ;;
esac
[ -n "$answer" ] || exit 1
printf '%s\n' "$answer"
