# bash completion for pam-totp and token-sim. It reads the commands and options from the programs' help texts.

_pam_totp_words() { # COMMAND…: print the commands and options that its help lists
    "$@" --help 2>/dev/null | sed -nE \
        -e 's/^    ([a-z][a-z-]*)( .*)?$/\1/p' \
        -e 's/^  (-[a-zA-Z], )?(--[a-z-]+).*$/\2/p'
}

_pam_totp_formats="google-authenticator users-oath otpauth migration qr csv json pskc aegis andotp freeotp 2fas bitwarden"

_pam_totp() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} words=
    local program=${COMP_WORDS[0]} command=${COMP_WORDS[1]-}
    COMPREPLY=()
    case $previous in
    --store | --stack | --config | --socket | --port | --map | --homes | --key-file | --password-file)
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        return
        ;;
    --for-user)
        mapfile -t COMPREPLY < <(compgen -u -- "$current")
        return
        ;;
    --first-factor) words="password key" ;;
    --type) words="totp hotp" ;;
    --algorithm) words="SHA1 SHA256 SHA512" ;;
    --digits) words="6 7 8" ;;
    *)
        if [[ $COMP_CWORD -eq 1 ]]; then
            words=$(_pam_totp_words "$program")
        elif [[ $current == -* ]]; then
            words=$(_pam_totp_words "$program" "$command")
        elif [[ $program == *token-sim ]]; then
            mapfile -t COMPREPLY < <(compgen -f -- "$current")
            return
        else
            case $command in
            enable | disable | doctor | policy | rehearse)
                if [[ $command == rehearse && $COMP_CWORD -gt 2 ]]; then
                    words=$(compgen -u)
                else
                    words=$(cd /etc/pam.d 2>/dev/null && echo [a-z]*)
                fi
                ;;
            import)
                mapfile -t COMPREPLY < <(compgen -f -- "$current")
                [[ $COMP_CWORD -eq 2 ]] && words=$_pam_totp_formats
                mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -W "$words" -- "$current")
                return
                ;;
            *) words=$(compgen -u) ;;
            esac
        fi
        ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}

complete -F _pam_totp pam-totp token-sim
