#!/bin/sh
# From a bare machine to a verified environment and a trained model: ./bootstrap.sh --help
#
# Finds a Python 3.10 to 3.15, or has one fetched (get_python.sh), and hands over to
# vqa_repro/install. Any POSIX shell runs this.
line_end='
' # two characters where Git has converted the line endings for Windows; hence the # below
if [ "${#line_end}" != 1 ]; then echo "error: bootstrap.sh has Windows line endings; git config core.autocrlf false, then clone again" >&2; exit 2; fi #

[ -z "${ZSH_VERSION-}" ] || emulate sh
sourced=''
if [ -n "${BASH_VERSION-}" ]; then
  # shellcheck disable=SC3028,SC3054,SC2128 # set by bash
  [ "${BASH_SOURCE-}" = "$0" ] || sourced=yes
else
  case ${ZSH_EVAL_CONTEXT-}:${0##*/} in
    *:file:* | *:-* | *:sh | *:ash | *:dash | *:ksh | *:mksh | *:busybox) sourced=yes ;;
  esac
fi
if [ -n "$sourced" ]; then
  echo "error: bootstrap.sh is run, not sourced or piped into a shell: ./bootstrap.sh --help" >&2
  # shellcheck disable=SC2317 # return fails where this is piped in
  return 2 2>/dev/null || exit 2
fi

# Python would give a file that it opens the number of a closed standard stream.
(exec 3<&0) 2>/dev/null || exec </dev/null
(exec 3>&1) 2>/dev/null || exec >/dev/null
(exec 3>&2) || exec 2>/dev/null

fail() { # CODE TEXT
  printf 'error: %s\n' "$2" >&2
  exit "$1"
}

# ---------------------------------------------------------------- arguments

python=${VQA_PYTHON-} venv=${VQA_VENV-} bundle=${VQA_BUNDLE-} installer=${VQA_INSTALLER-}
mirror=${UV_PYTHON_INSTALL_MIRROR-} offline=${VQA_OFFLINE-}
making='' help='' looking='' # the exit code of a call that changes nothing
[ "${VQA_DRY_RUN-}" != 1 ] || looking=0

# What the search for a Python depends on. All arguments are read and checked in Python.
# shellcheck disable=SC2034 # offline, looking and mirror are read by get_python.sh
scan() {
  while [ $# -gt 0 ]; do
    case $1 in
      -- | test) return ;; # the rest is for another program
      -h | --help) help=yes ;;
      --python=*) python=${1#*=} ;;
      --python-mirror=*) mirror=${1#*=} ;;
      --venv=*) venv=${1#*=} ;;
      --bundle=*) bundle=${1#*=} ;;
      --installer=*) installer=${1#*=} ;;
      --offline) offline=1 ;;
      --dry-run | stop) looking=0 ;;
      check) looking=11 ;;
      --python | --python-mirror | --venv | --bundle | --installer | bundle | --skip | \
        --lock-wait | --torch | --torch-index | --split)
        case $1 in
          --python) python=${2-} ;;
          --python-mirror) mirror=${2-} ;;
          --venv) venv=${2-} ;;
          --bundle) bundle=${2-} ;;
          --installer) installer=${2-} ;;
          bundle) making=yes ;;
        esac
        [ $# -lt 2 ] || shift
        ;;
    esac
    shift
  done
}

# ---------------------------------------------------------------- candidates

rejected='' # lines "PATH: why not"
pipless=''  # a Python that only needs uv to be fit
base='' version='' patience=15 # s that a Python may take to answer
newline=$line_end

# A name on PATH proves nothing, so run it. Prints "ok|version|path|tools" or "no|why".
probe_one() { # PYTHON
  if command -v timeout >/dev/null; then
    answer=$(timeout -k 1 "$patience" "$1" -I "$probe" "$(uname -m)" 2>&1 </dev/null)
  else
    answer=$("$1" -I "$probe" "$(uname -m)" 2>&1 </dev/null)
  fi
  code=$?
  last=${answer##*"$newline"}
  case $code:$last in
    0:ok\|* | 0:no\|*) echo "$last" ;;
    124:* | 137:*) echo "no|no answer within $patience s" ;;
    *) echo "no|exit code $code: ${answer%%"$newline"*}" ;;
  esac
}

# Probe all at the same time and take the first that is fit: base and version.
consider() { # PYTHON...
  number=100
  answers=$(
    for candidate; do
      number=$((number + 1))
      { verdict=$(probe_one "$candidate") && printf '%s\n' "$number|$verdict"; } &
    done
    wait
  )
  while IFS='|' read -r _ verdict first second tools; do
    if [ "$verdict" = ok ] && [ -z "$tools" ] && ! uv_is_at_hand; then
      pipless=${pipless:-$second}
      verdict=no first="$first, with neither pip nor ensurepip (Debian: apt install python3-venv)"
    fi
    if [ "$verdict" = ok ]; then
      version=$first base=$second
      return 0
    fi
    rejected=$rejected${rejected:+$newline}"$1: $first"
    shift
  done <<ANSWERS
$(printf '%s\n' "$answers" | sort -n)
ANSWERS
  return 1
}
uv_is_at_hand() {
  [ "$installer" != pip ] || return 1
  [ -z "$bundle" ] || return 0
  for uv in "$project"/.bootstrap/uv-*/uv; do [ ! -x "$uv" ] || return 0; done
  command -v uv >/dev/null
}

# All files that may be this Python, most likely first, each once.
consider_version() { # 3.X, 3 or ''
  candidates='' home=${HOME-}
  set -- "$1" "${CONDA_PREFIX-}/bin" /usr/local/bin /usr/bin /opt/*/bin \
    "$home"/.pyenv/versions/*/bin "$home"/.local/share/uv/python/*/bin "$home"/*conda3/bin \
    "$home"/miniforge3/bin "$home"/.local/bin
  name=python$1
  shift
  set -f
  IFS=:
  for folder in $PATH "$@"; do
    file=$folder/$name
    [ -x "$file" ] && [ ! -d "$file" ] && is_new "$file" && candidates=$candidates$file$newline
  done
  IFS=$newline
  # shellcheck disable=SC2086 # one candidate a line
  set -- $candidates
  unset IFS
  set +f
  [ $# -gt 0 ] && consider "$@"
}
is_new() { # FILE
  IFS=$newline
  for seen in $candidates; do
    # shellcheck disable=SC3013 # every shell has -ef, and POSIX since 2024
    [ ! "$1" -ef "$seen" ] || return 1
  done
}
consider_all() {
  for minor in 3.13 3.14 3.12 3.11 3.10 3.15 3 ''; do
    ! consider_version "$minor" || return 0
  done
  return 1
}

consider_managed() { # 3.X
  set -- "$pythons/cpython-$1".*/bin/"python$1"
  [ -x "$1" ] && consider "$@"
}

# The environment's, which is not made again because a newer Python has appeared.
consider_stamped() {
  stamped=$(sed -n 's/^base //p' "$venv/.finished" 2>/dev/null)
  case $python:$stamped in *: | system:"$pythons"/*) return 1 ;; esac
  if [ -x "$stamped" ]; then
    consider "$stamped"
  else
    rejected="$stamped: not here; the environment was made of it"
    return 1
  fi
}

# Named by the user or the bundle; else the environment's; else the newest; else a managed one.
choose_python() {
  case $python in
    managed) consider_managed "$wanted" ;;
    system) consider_stamped || consider_all ;;
    '') consider_stamped || consider_all || consider_managed "$wanted" ;;
    3.[0-9] | 3.[0-9][0-9]) consider_version "$python" || consider_managed "$python" ;;
    *) file=$(command -v -- "$python") && consider "$file" ;; # Python reports that
  esac
}

# ---------------------------------------------------------------- main

main() {
  script=$0
  [ -e "$script" ] || script=$(command -v -- "$0") || fail 2 "cannot find my own file, $0"
  case $script in */*) ;; *) script=./$script ;; esac
  while [ -L "$script" ]; do
    link=$(readlink -- "$script") || fail 2 "cannot read the link $script"
    case $link in
      /*) script=$link ;;
      *) script=${script%/*}/$link ;;
    esac
  done
  project=$(CDPATH='' cd -- "${script%/*}/" && pwd -P) || fail 2 "cannot enter ${script%/*}"
  [ -f "$project/vqa_repro/install/__main__.py" ] \
    || fail 2 "no $project/vqa_repro/install: this is not a whole copy of the project"

  scan "$@"
  [ -z "$help" ] || exec cat "$project/vqa_repro/install/usage.txt"
  venv=${venv:-$project/.venv} probe=$project/vqa_repro/install/probe.py
  # Next to the environment: on the same disk, and deleted together with it.
  pythons=$(CDPATH='' cd -- "$venv" 2>/dev/null && pwd -P) || pythons=$venv
  pythons=${pythons%/}.python
  if [ -n "$making" ]; then
    case $python in 3.[0-9] | 3.[0-9][0-9]) python='' ;; esac # the one that the bundle is for
  elif [ -z "$python" ] && [ -f "$bundle/bundle.json" ]; then # not verified yet
    python=$(head -c 9999 "$bundle/bundle.json" \
      | sed -n 's/^ "python": "\(3\.1[0-5]\)",$/\1/p' | head -n 1)
  fi
  case $python in 3.*) wanted=$python ;; *) wanted=3.13 ;; esac
  choose_python || {
    # shellcheck source=vqa_repro/install/get_python.sh
    . "$project/vqa_repro/install/get_python.sh"
    get_python
  }
  # With none that may be used, another one reports that, with all else that is wrong here.
  why=$rejected runner=$base
  if [ -z "$base" ]; then
    consider_all || consider_managed 3.13 || [ -n "$pipless" ] || no_python
    runner=${base:-$pipless} base='' rejected=$why
  fi
  # -I: nothing of PYTHONPATH, PYTHONINSPECT and their like reaches it; -B: it writes nothing.
  exec "$runner" -I -B -X utf8 -c '
import sys
project, base, version, rejected = sys.argv[1:5]
del sys.argv[1:5]
sys.path.insert(0, project)
try:
    from vqa_repro.install.__main__ import main
except Exception as error:
    sys.stderr.write("error: the installer cannot be loaded: %s; clone or copy it again\n" % error)
    sys.exit(2)
sys.exit(main(base, version, rejected.splitlines()))
' "$project" "$base" "$version" "$rejected" "$@"
}

main "$@"
exit
