# Shared functions, sourced by the scripts in this folder. They must also work in the bash 3.2 of macOS.

ACCESS_REMEDY='sudo usermod -aG docker "$USER", then log in again'

# Whether a Docker engine answers this user. If not, docker_error holds docker's error message.
engine_answers() {
  docker_error=$(docker version 2>&1 > /dev/null) && return
  docker_error=$(printf '%s\n' "$docker_error" | tail -n 1)
  return 1
}

# need_engine COMMAND: exits with an error that names COMMAND, unless a Docker engine answers.
need_engine() {
  local help='docker/engine installs and starts one'
  engine_answers && return
  case $docker_error in
    *"permission denied"*) help="to give this user access: $ACCESS_REMEDY" ;;
  esac
  echo "$1 needs a Docker engine, but none answers ($docker_error); $help" >&2
  exit 1
}

# decimal BYTES: prints a size with its unit; 1784512345 gives 1.78GB.
decimal() {
  awk -v n="$1" 'BEGIN { split("B KB MB GB TB", unit); for (i = 1; n >= 999.995 && i < 5; i++) n /= 1000
                         printf "%.2f%s\n", n, unit[i] }'
}
