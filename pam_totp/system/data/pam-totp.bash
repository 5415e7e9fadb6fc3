# bash completion for pam-totp and token-sim. It reads the commands, options and choices from the programs' help texts.
#
# Rules:
# - It offers only words that the command accepts at the position of the cursor.
# - Names of users and tokens are never evaluated. `compgen -W` is used for fixed words only, because it expands them.

_pam_totp_help() { # COMMAND…: print its help, with one line for each option
    COLUMNS=1000 NO_COLOR=1 "$@" --help 2>/dev/null
}

_pam_totp_words() { # COMMAND…: print the commands and options that its help lists
    _pam_totp_help "$@" | sed -nE \
        -e 's/^    ([a-z][a-z-]*)( .*)?$/\1/p' \
        -e 's/^  (-[a-zA-Z], )?(--[a-z-]+).*$/\2/p'
}

_pam_totp_with_value() { # COMMAND…: print the options that need a value
    _pam_totp_help "$@" | sed -nE 's/^  (-[a-zA-Z], )?(--[a-z-]+) [A-Z{].*$/\2/p'
}

_pam_totp_choices() { # OPTION COMMAND…: print the choices {A,B} of an option
    local option=$1
    shift
    _pam_totp_help "$@" | sed -nE "s/^  $option \{([^}]*)\}.*$/\1/p" | tr , '\n'
}

_pam_totp_formats() { # COMMAND…: print the formats that its help lists, such as google-authenticator
    _pam_totp_help "$@" | sed -nE '/^  .*  .*google-authenticator,/{s/^.*(  |one of )//;s/, /\n/gp;}'
}

_pam_totp_devices() { # FOLDER: print the serial devices in it
    local device
    for device in "$1"/ttyUSB* "$1"/ttyACM* "$1"/serial/by-id/*; do
        [[ ! -e $device ]] || echo "$device"
    done
}

_pam_totp_enrolled() { # STORE: print the users that have a record in STORE, or the caller if it cannot be read
    local file name
    if [[ ! -r $1 ]]; then
        id -un
        return
    fi
    for file in "$1"/*.record; do
        [[ -e $file ]] || continue
        name=${file##*/}
        name=${name%.record}
        printf '%b\n' "${name//%/\\x}" # a file name has %2F for a slash
    done
}

_pam_totp_tokens() { # PROGRAM STORE USER: print the names of the user's tokens
    "$1" list --store "$2" --json -- "$3" 2>/dev/null | grep -oE '"name": "[^"\\]*"' | cut -d '"' -f 4
}

_pam_totp_serials() { # PROGRAM STORE STATE: print the serial numbers of the stock's tokens in this state: free or assigned
    local -a options=()
    local state='"assigned"'
    if [[ $3 == free ]]; then
        options=(--free)
        state=''
    fi
    "$1" stock list --store "$2" --json "${options[@]}" 2>/dev/null | grep -E "\"state\": $state" |
        grep -oE '"serial": "[^"\\]*"' | cut -d '"' -f 4
}

_pam_totp_services() { # KIND: print the services that can be enabled or disabled, or all
    local name
    case $1 in
    disabled) (cd /var/lib/pam_totp_enabled 2>/dev/null && for name in *.json *.trial; do
        [[ -e $name ]] && echo "${name%.*}"
    done) ;;
    *) (cd /etc/pam.d 2>/dev/null && for name in [a-z]*; do
        [[ $1 == enabled && -e /var/lib/pam_totp_enabled/$name.json ]] || echo "$name"
    done) ;;
    esac
}

_pam_totp_place() { # PROGRAM COMMAND PLACE STORE FIRST: print the words for argument PLACE (1, 2, …) of a command
    local program=$1 command=$2 place=$3 store=$4 first=$5
    case $command:$place in
    enroll:1 | invite:* | rehearse:2) compgen -u ;;
    list:1 | recovery:1 | unlock:1 | export:1 | verify:1 | resync:1) _pam_totp_enrolled "$store" ;;
    qr:1 | replace:1 | rename:1 | enable-token:1 | disable-token:1 | remove:1)
        _pam_totp_enrolled "$store"
        [[ -r $store ]] || _pam_totp_tokens "$program" "$store" "$(id -un)" # USER may be omitted
        ;;
    qr:2 | replace:2 | rename:2 | enable-token:2 | disable-token:2 | remove:2)
        _pam_totp_tokens "$program" "$store" "$first"
        ;;
    import:1)
        _pam_totp_formats "$program" import
        compgen -f -- "$current"
        ;;
    import:*) compgen -f -- "$current" ;;
    desk:1) printf '%s\n' find show unlock temporary-code ticket disable enable stock assign replace ;;
    desk:2) [[ $first =~ ^(find|show|unlock|temporary-code|ticket|disable|enable)$ ]] && compgen -u ;;
    desk:3) [[ $first == assign ]] && compgen -u ;;
    stock:1) printf '%s\n' import list remove ;;
    stock:2)
        [[ $first == import ]] && _pam_totp_formats "$program" stock
        [[ $first == import ]] && compgen -f -- "$current"
        [[ $first == remove ]] && _pam_totp_serials "$program" "$store" free
        ;;
    stock:*) [[ $first == import ]] && compgen -f -- "$current" ;;
    assign:1) _pam_totp_serials "$program" "$store" free ;;
    assign:2) compgen -u ;;
    unassign:1 | return:1) _pam_totp_serials "$program" "$store" assigned ;;
    store:1) printf '%s\n' init copy ;;
    store:*) compgen -f -- "$current" ;;
    seal:1) printf '%s\n' init rotate export status ;;
    seal:2) [[ $first == export ]] && compgen -f -- "$current" ;;
    authority:1) printf '%s\n' init serve restore fence ;;
    member:1) printf '%s\n' add list revoke groups break-glass radius ;;
    member:2) if [[ $first == radius ]]; then printf '%s\n' install client; else compgen -u; fi ;;
    member:*) compgen -u ;;
    enable:1) _pam_totp_services enabled ;;
    disable:1) _pam_totp_services disabled ;;
    doctor:* | policy:1 | rehearse:1) _pam_totp_services all ;;
    esac
}

_pam_totp_value() { # PROGRAM COMMAND OPTION STORE FIRST: print the words for the value of an option
    local program=$1 command=$2 option=$3 store=$4 first=$5
    case $option in
    --port)
        _pam_totp_devices /dev
        compgen -f -- "$current"
        ;;
    --store | --stack | --config | --credentials | --folder | --socket | --metrics | --textfile | --output | --map | --homes | --key | --key-file | --password-file | --replaces) ;&
    --log)
        [[ $option == --log && $command == authority && $first != restore ]] && printf '%s\n' syslog stderr
        [[ $option == --log && $command =~ ^(serve|portal|authority)$ && $first != restore ]] || compgen -f -- "$current"
        ;;
    --for-user) compgen -u ;;
    --put) compgen -u ;;
    --user) compgen -u ;;
    --nullok-group) compgen -g ;;
    --token) _pam_totp_tokens "$program" "$store" "$first" ;;
    --qr) printf '%s\n' terminal ascii png= svg= none ;;
    --format) _pam_totp_formats "$program" "$command" ;;
    esac
    _pam_totp_choices "$option" "$program" "$command"
}

_pam_totp() {
    local program=${COMP_WORDS[0]} current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local command=${COMP_WORDS[1]-} store=/var/lib/pam_totp with_value='' word i first='' place=1
    local -A used=()
    COMPREPLY=()
    if [[ $COMP_CWORD -gt 1 ]]; then
        with_value=$'\n'$(_pam_totp_with_value "$program" "$command")$'\n'
        for ((i = 2; i < COMP_CWORD; i++)); do
            word=${COMP_WORDS[i]}
            if [[ $word == --* ]]; then
                used[$word]=1
                if [[ $with_value == *$'\n'"$word"$'\n'* && $i -lt $((COMP_CWORD - 1)) ]]; then
                    i=$((i + 1))
                    [[ $word == --store ]] && store=${COMP_WORDS[i]}
                fi
            else
                [[ $place -eq 1 ]] && first=$word
                place=$((place + 1))
            fi
        done
    fi
    while IFS= read -r word; do
        [[ $word == "$current"* ]] || continue
        [[ -n ${used[$word]-} && $word != --with && $word != --host ]] && continue
        [[ $word == *= ]] && compopt -o nospace 2>/dev/null
        COMPREPLY+=("$(printf '%q' "$word")")
    done < <(
        if [[ $COMP_CWORD -eq 1 ]]; then
            _pam_totp_words "$program"
        elif [[ $previous == --* && $with_value == *$'\n'"$previous"$'\n'* ]]; then
            _pam_totp_value "$program" "$command" "$previous" "$store" "$first"
        elif [[ $current == -* ]]; then
            _pam_totp_words "$program" "$command"
        elif [[ $program == *token-sim ]]; then
            compgen -f -- "$current"
        else
            _pam_totp_place "$program" "$command" "$place" "$store" "$first"
        fi
    )
}

complete -F _pam_totp pam-totp token-sim
