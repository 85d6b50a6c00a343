# What deploy/deploy and deploy/rollback share: their options, and the way to the host. Sourced.
# shellcheck shell=bash
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
host=${DEPLOY_HOST:-} dir=${DEPLOY_DIR:-/srv/spanloom} gate=180 tag=''

usage() { # prints the head of the script that asks
  sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | sed '/^set /d' >&2
  exit 2
}

wrong() {
  printf '%s\n' "$1" >&2
  exit 2
}

# Sets host, dir, gate, tag and the script's own variable OWN: an option with a value, or `status`.
parse() { # OWN ARGUMENT...
  local own=$1
  shift
  while (($#)); do
    case $1 in
      --status)
        [[ $own == status ]] || usage
        printf -v status yes
        shift
        ;;
      --*)
        [[ " host dir gate $own " == *" ${1#--} "* && $# -ge 2 ]] || usage
        printf -v "${1#--}" '%s' "$2"
        shift 2
        ;;
      -*) usage ;;
      *)
        [[ -z $tag ]] || usage
        tag=$1
        shift
        ;;
    esac
  done
  [[ -n $host ]] || usage
  # They become part of a command line on the other side.
  [[ $host != -* && $host != *[[:space:]]* ]] || wrong "'$host' is no host: give USER@HOST"
  [[ -z $tag || $tag =~ ^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$ ]] || wrong "'$tag' is no image tag"
  [[ $dir =~ ^/[A-Za-z0-9._/-]+$ ]] || wrong "--dir takes an absolute path of letters, digits and ._-/"
  [[ $gate =~ ^[1-9][0-9]{0,4}$ ]] || wrong "--gate takes whole seconds"
}

# Runs a shell command there. DEPLOY_SSH is the program and its options, `ssh -F FILE` for one.
remote() {
  local -a ssh
  read -ra ssh <<<"${DEPLOY_SSH:-ssh}"
  local status=0
  "${ssh[@]}" -o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=15 -o ServerAliveCountMax=4 \
    -- "$host" "$@" || status=$?
  if ((status == 255)); then
    echo "the connection to $host failed or broke off. What was begun there ends by itself, in service or rolled back; deploy/rollback --host $host --dir $dir --status tells" >&2
  fi
  return "$status"
}

on_host() { # ACTION ARGUMENT...: every one of them checked above
  remote "bash -s -- '$dir' '$gate' $*" <"$here/on-host"
}
