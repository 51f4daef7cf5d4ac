# makeWrapper PROGRAM WRAPPER ARGS...: a script that sets the environment and runs the program.
makeWrapper() {
  local program=$1 wrapper=$2 flags= after=
  shift 2
  mkdir -p "$(dirname "$wrapper")"
  {
    echo "#!/usr/bin/bash -e"
    while [ $# -gt 0 ]; do
      case $1 in
        --set) printf 'export %s=%q\n' "$2" "$3"; shift 3 ;;
        --set-default) printf 'export %s=${%s-%q}\n' "$2" "$2" "$3"; shift 3 ;;
        --unset) printf 'unset %s\n' "$2"; shift 2 ;;
        --run) printf '%s\n' "$2"; shift 2 ;;
        --chdir) printf 'cd %q\n' "$2"; shift 2 ;;
        --prefix) printf 'export %s=%q${%s:+%q$%s}\n' "$2" "$4" "$2" "$3" "$2"; shift 4 ;;
        --suffix) printf 'export %s=${%s:+$%s%q}%q\n' "$2" "$2" "$2" "$3" "$4"; shift 4 ;;
        --add-flags | --add-flag) flags+=" $2"; shift 2 ;;
        --append-flags | --append-flag) after+=" $2"; shift 2 ;;
        --inherit-argv0 | --resolve-argv0) shift ;;
        --argv0) shift 2 ;;
        *) echo "makeWrapper: unknown argument $1" >&2; return 1 ;;
      esac
    done
    printf 'exec %q%s "$@"%s\n' "$program" "$flags" "$after"
  } > "$wrapper"
  chmod +x "$wrapper"
}
makeShellWrapper() { makeWrapper "$@"; }
makeBinaryWrapper() { makeWrapper "$@"; }
wrapProgram() {
  local program=$1 hidden
  shift
  hidden=$(dirname "$program")/.$(basename "$program")-wrapped
  mv "$program" "$hidden"
  makeWrapper "$hidden" "$program" "$@"
}
wrapProgramShell() { wrapProgram "$@"; }
