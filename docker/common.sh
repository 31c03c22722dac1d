# Sourced by the scripts beside it, also by the bash 3.2 of a Mac.

LET_IN='sudo usermod -aG docker "$USER", then log in again'

# Whether a Docker engine answers this user; docker_said is why it does not, in docker's own words.
engine_answers() {
  docker_said=$(docker version 2>&1 > /dev/null) && return
  docker_said=$(printf '%s\n' "$docker_said" | tail -n 1)
  return 1
}

# need_engine WHO: ends the script, saying who needs an engine, unless one answers.
need_engine() {
  local help='docker/engine installs and starts one'
  engine_answers && return
  case $docker_said in
    *"permission denied"*) help="to let this user at it: $LET_IN" ;;
  esac
  echo "$1 needs a Docker engine, and none answers ($docker_said); $help" >&2
  exit 1
}

# decimal BYTES: 1784512345 is 1.78GB.
decimal() {
  awk -v n="$1" 'BEGIN { split("B KB MB GB TB", unit); for (i = 1; n >= 999.995 && i < 5; i++) n /= 1000
                         printf "%.2f%s\n", n, unit[i] }'
}
