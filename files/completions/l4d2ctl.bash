# bash completion for l4d2ctl: commands, options and the ids of the declared servers.
_l4d2ctl() {
    local current=${COMP_WORDS[COMP_CWORD]} words
    if ((COMP_CWORD == 1)); then
        words="status show start stop restart reset attic holders rcon logs jobs game doctor --help --version"
    elif [[ $current == -* ]]; then
        case ${COMP_WORDS[1]} in
            status) words="--all --json --follow --help" ;;
            attic) words="--all --json --help" ;;
            restart) words="--all --unless-stopped --when-empty --help" ;;
            show) words="--json --help" ;;
            jobs) words="--follow --json --help" ;;
            reset) words="--all --undo --help" ;;
            holders) words="--all --json --watch --help" ;;
            logs) words="--all --follow --lines --help" ;;
            rcon) words="--help" ;;
            game) words="--json --check --help" ;;
            doctor) words="--fix --json --help" ;;
            *) words="--all --help" ;;
        esac
    elif [[ ${COMP_WORDS[1]} == game ]]; then
        ((COMP_CWORD == 2)) && words="status update rollback"
        [[ ${COMP_WORDS[2]} == rollback && $COMP_CWORD -eq 3 ]] && words=$(ls /var/lib/left4me/releases 2>/dev/null)
    elif [[ ${COMP_WORDS[1]} == jobs ]]; then
        words=$(cd /var/lib/left4me/jobs 2>/dev/null && compgen -G '*.json' | sed 's/\.json$//' | sort -n)
    elif [[ ${COMP_WORDS[1]} != doctor && (${COMP_WORDS[1]} != rcon || COMP_CWORD -eq 2) ]]; then
        words=$(cd /etc/left4me/servers 2>/dev/null && compgen -G '[a-z0-9]*' | sort)
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}
complete -F _l4d2ctl l4d2ctl
