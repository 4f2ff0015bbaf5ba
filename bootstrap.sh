#!/usr/bin/env bash
# From a bare machine to a verified environment and a trained model. ./bootstrap.sh --help
#
# Needs bash 4 and a Python 3.10 to 3.14, compiles nothing. In this order below: help, talking,
# running commands, settings, Python, machine facts, the lock, bundles, installers, the environment,
# JupyterLab, the stages, arguments.
{ # bash reads a script while running it: the braces make it read all of it first
set -Eeuo pipefail
if ((BASH_VERSINFO[0] < 4)); then
  echo "bootstrap.sh needs bash 4 or newer; this is $BASH_VERSION (macOS: brew install bash)" >&2
  exit 10
fi
PROJECT=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
LOCKFILE=$PROJECT/requirements.lock # that of the CUDA 13 build of torch; see use_build
LOCKFILES=("$LOCKFILE" "$PROJECT/wordnet.lock") # the second is to be installed with --no-deps
STATE=$PROJECT/.bootstrap # the installer, the logs and the lock of this script
STAGES=(check env checkpoint doctor train)
JUPYTER=$STATE/jupyter/${HOSTNAME:-?} # a home may be shared: each machine has a server of its own
SELF=./bootstrap.sh
[[ $PWD -ef $PROJECT ]] || printf -v SELF %q "$PROJECT/bootstrap.sh"
MAKE="$SELF env" # what makes the environment that is being made
readonly PROJECT STATE STAGES JUPYTER SELF

usage() {
  cat <<'HELP'
./bootstrap.sh [STAGE] [OPTIONS] [-- ARGUMENTS OF train OR jupyter]

Without a STAGE, all of them in this order; with one, that one (and env first, where it needs it):
  check        is this machine fit? all problems at once; changes nothing
  env          the Python environment, exactly as the *.lock files say; nothing is compiled
  checkpoint   VGG-19, verified (checkpoints_setup.py)
  doctor       does the environment compute correctly, on each GPU?
  train        python -m vqa_repro.train --resume TRAIN ARGUMENTS
Also:
  test [PYTEST ARGUMENTS]   the tests, in that environment
  jupyter                   JupyterLab on this machine, for a browser on yours through SSH
  jupyter stop              ends it, and its kernels
  bundle OUT                all of it in the folder OUT, for a machine without a network: there,
                            ./bootstrap.sh --bundle OUT. The same command completes what was cut off
                            and brings OUT up to date. For --python 3.X and --torch BUILD if named.

JupyterLab has an environment of its own inside the other (jupyter.lock); its kernel, vqa_repro,
runs in the other. It runs in the background, listens on 127.0.0.1 alone and wants a token: what to
type on your side is printed, and once more by the same command while it runs. It goes on when the
connection drops or the browser is closed, and so does a training in a notebook; only what a cell
prints while no browser is open may be lost. Its log and settings lie in .bootstrap/jupyter.

Options                    or variable
  --skip STAGE             VQA_SKIP         leave a stage out; may be repeated ("a b" in VQA_SKIP)
  --dry-run                VQA_DRY_RUN=1    say what would be done; touch nothing
  --python PATH|3.X        VQA_PYTHON       this Python; otherwise the newest that is fit
  --venv DIR               VQA_VENV         the environment's folder; otherwise .venv beside this
  --installer uv|pip|auto  VQA_INSTALLER    auto takes uv where it can be had, and pip otherwise
  --offline                VQA_OFFLINE=1    try no network
  --lock-wait SECONDS      VQA_LOCK_WAIT    wait so long for another bootstrap (default 1800)
  --torch BUILD            VQA_TORCH        cu130, cu128, cu126, cpu, or auto: by driver and cards
  --torch-index URL        VQA_TORCH_INDEX  where the build cpu is, if not at PyTorch's site
  --bundle DIR             VQA_BUNDLE       take everything from this bundle, verified first
  --split SIZE                              bundle: in files of at most SIZE, as 100M or 2G
  --help
The index, proxies and certificates set for pip or uv (variables, pip.conf, uv.toml) are used, also
by the other of the two. PYTHONPATH and whatever else would change the result is set aside.

torch: three builds, each with a lock of its own, all from the ordinary package index:
  cu130  CUDA 13, newest torch     driver 580 or newer        compute capability 7.5 and newer
  cu128  CUDA 12.8, torch 2.10.0   driver 525.60.13 or newer  7.0 and newer (10.0 and newer: 570)
  cu126  CUDA 12.6, torch 2.7.1    driver 525.60.13 or newer  5.0 to 9.0; Python up to 3.13
The first that runs all cards is installed, and cu130 on a machine without a card; where none does,
nothing is, until --torch names one. cu128 and cu126 are for Linux x86_64. An environment keeps its
build until --torch says otherwise. The build cpu exists at PyTorch's download site alone: its lock
is made by python .ci/make_lock.py --torch cpu.

Exit codes
  0    done
  1    an error in bootstrap.sh itself
  2    bad arguments, or a folder that cannot serve as the environment
  3-6  stage checkpoint, run alone: see python checkpoints_setup.py --help
  10   operating system, processor or C library not supported
  11   no usable Python
  12   no room on the disk
  13   no permission to write, or to run programs there
  14   the packages could not be installed (most often the network)
  15   a package is not the one that the *.lock files name (hash mismatch)
  16   another bootstrap held the lock for too long
  17   the doctor found something broken
  18   JupyterLab does not start
  19   the bundle is damaged, or for another Python, platform, build or lock
  20   no build of torch runs these cards, or the lock of the one that does is not here
  129, 130, 143  hung up, Ctrl-C, terminated; the same command continues
Stages train and test end with the exit codes of train and pytest.
HELP
}

# ---------------------------------------------------------------- talking

RED='' GREEN='' YELLOW='' PLAIN=''
if [[ -t 1 && -t 2 && -z ${NO_COLOR:-} && ${TERM:-dumb} != dumb ]]; then
  RED=$'\e[31m' GREEN=$'\e[32m' YELLOW=$'\e[33m' PLAIN=$'\e[0m'
fi
LOG='' LOG_FROM=0 # the log file, once there is one; where the last command's part begins

redact() { LC_ALL=C sed -E 's#(://)[^/@[:space:]]+@#\1***@#g'; }
say() { printf '%s\n' "$*" | redact; }
row() { # NAME STATE TEXT: one line of the table; STATE is ok, note or problem
  local colour=$GREEN
  [[ $2 == ok ]] || colour=$YELLOW
  [[ $2 != problem ]] || colour=$RED
  say "$(printf '  %-9s %s%-8s%s %s' "$1" "$colour" "$2" "$PLAIN" "$3")"
}
also() { say "                     $1"; } # a further line of that row
fail() { # CODE WHAT WHY NEXT
  {
    echo "${RED}failed${PLAIN}: $2"
    echo "  why:  $3"
    if [[ -n $LOG ]]; then
      tail -c "+$((LOG_FROM + 1))" "$LOG" | tail -n 8 | sed 's/^/      | /'
      echo "  log:  $LOG"
    fi
    echo "  next: $4"
  } | redact >&2
  exit "$1"
}
open_log() {
  if [[ -z $LOG ]]; then
    local old path
    mkdir -p "$STATE/log"
    printf -v path '%s/log/%(%Y%m%d-%H%M%S)T-%s.log' "$STATE" -1 $$
    old=("$STATE"/log/*.log) # by name, so by time
    ((${#old[@]} < 10)) || rm -f -- "${old[@]:0:${#old[@]}-9}"
    LOG=$path
  fi
  touch "$LOG"
  LOG_FROM=$(wc -c <"$LOG")
}

# ---------------------------------------------------------------- running commands

CHILD='' # the command that runs at the moment
RC=0     # how the last one ended

limited() { # SECONDS COMMAND...
  if command -v timeout >/dev/null; then timeout -k 1 "$@"; else "${@:2}"; fi
}
started() { # PID: when it began, which tells it from a later one of its number; '' if it is gone
  local fields
  if [[ -d /proc/self ]]; then
    fields=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
    read -ra fields <<<"${fields##*) }"
    [[ ${fields[0]} == Z ]] || echo "${fields[19]}"
  else
    ps -o lstart= -p "$1" | tr ' ' _ || true
  fi
}
alive() { [[ -n $2 && $(started "$1") == "$2" ]]; } # PID STARTED

# A command runs in the background, since bash obeys a signal only while it waits; and in a process
# group of its own (set -m), so that it can be ended with all that it has started.
attached() { # COMMAND...: let it talk to the user
  set -m
  "$@" </dev/null &
  set +m
  CHILD=$! RC=0
  wait "$CHILD" || RC=$?
  CHILD=''
}
logged() { # WHAT COMMAND...: one of the installer's, under the lock; output to the log
  local what=$1 signs
  shift
  open_log
  mkdir -p "$STATE/tmp"
  set -m
  (
    trap - ERR
    note_child
    package_settings
    cd -- "$PROJECT" # the folder we are called from may have settings for uv
    "$@" </dev/null 2>&1 | redact >>"$LOG"
  ) >/dev/null 2>&1 &
  set +m
  CHILD=$! RC=0
  signs_of_life "$what" &
  signs=$!
  wait "$CHILD" || RC=$?
  CHILD=''
  rm -f "$STATE/child"
  kill "$signs" && wait "$signs" 2>/dev/null || true
  [[ ! -t 1 ]] || printf '\r\e[K'
}
note_child() { # so that a later run can end us, should this one be killed
  local me=$BASHPID
  echo "$me $(started "$me")" >"$STATE/child"
}
signs_of_life() { # WHAT: until it is ended, or bootstrap is gone
  trap - EXIT ERR INT TERM HUP
  local begin=$SECONDS every=30 bootstrap free seconds
  [[ ! -t 1 ]] || every=1
  bootstrap=$(started $$)
  free=$(free_mb "$STATE")
  while sleep 1 >/dev/null 2>&1 && alive $$ "$bootstrap"; do
    seconds=$((SECONDS - begin))
    ((seconds % every == 0)) || continue
    [[ ! -t 1 ]] || printf '\r\e[K'
    printf '  %s: %d s, about %d MB written' "$1" "$seconds" $((free - $(free_mb "$STATE")))
    [[ -t 1 ]] || echo
  done
}
end_group() { # PID [TENTHS]: the command and all that it has started, which has so long to obey
  local tries=${2:-50}
  kill -- "-$1" 2>/dev/null || return 0
  while kill -0 -- "-$1" 2>/dev/null && ((tries-- > 0)); do sleep 0.1; done
  kill -9 -- "-$1" 2>/dev/null || true
}

# shellcheck disable=SC2329 # called by a trap
on_error() { # LINE COMMAND
  fail 1 "bootstrap.sh, line $1" "this command failed: $2" "please report it, with these lines"
}
# shellcheck disable=SC2329 # called by a trap
on_signal() { # CODE
  trap '' INT TERM HUP
  [[ -z $CHILD ]] || end_group "$CHILD"
  [[ ! -t 1 ]] || echo
  echo "interrupted; the same command continues" >&2
  exit "$1"
}
trap 'on_error "$LINENO" "$BASH_COMMAND"' ERR
trap 'on_signal 129' HUP
trap 'on_signal 130' INT
trap 'on_signal 143' TERM
trap 'release_lock' EXIT

# ---------------------------------------------------------------- settings of pip, uv and Python

SET_ASIDE='' USED='' # names of variables
CONF=''              # what pip.conf says, as NAME=value lines
SYSTEM_CERTS=0       # 1: trust what the system trusts, not only what uv does

# Whatever would change what is installed or imported goes; the way to the packages stays.
clean_environment() {
  local name
  for name in PYTHONHOME PYTHONPATH PYTHONSTARTUP VIRTUAL_ENV __PYVENV_LAUNCHER__ \
    "${!PIP_@}" "${!UV_@}"; do
    [[ -n ${!name:-} ]] || continue
    case $name in
      PIP_CONFIG_FILE | PIP_DISABLE_PIP_VERSION_CHECK) ;;
      PIP_*INDEX* | PIP_FIND_LINKS | PIP_TRUSTED_HOST | PIP_*CERT | PIP_PROXY | PIP_CACHE_DIR | \
        PIP_*TIMEOUT | PIP_RETRIES | PIP_KEYRING_PROVIDER | UV_*INDEX* | UV_FIND_LINKS | \
        UV_INSECURE_HOST | UV_*CERTS | UV_NATIVE_TLS | UV_CACHE_DIR | UV_HTTP_* | UV_OFFLINE | \
        UV_KEYRING_PROVIDER | UV_CONFIG_FILE | UV_CONCURRENT_* | UV_LINK_MODE) USED+=" $name" ;;
      *)
        SET_ASIDE+=" $name"
        unset "$name"
        ;;
    esac
  done
}

read_settings() { # needs BASE
  CONF=$("$BASE" -I -B "$PROJECT/vqa_repro/install/pip_config.py")
  [[ -z $CONF ]] || USED+=" pip.conf: $(cut -d = -f 1 <<<"$CONF" | xargs)"
}
cache_dir() { # uv's; beside this script where the usual place is closed to us
  local folder=${UV_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-$STATE}/.cache}/uv}
  [[ $folder == /* ]] || folder=$PWD/$folder
  if writable "$folder"; then echo "$folder"; else echo "$STATE/cache"; fi
}
package_settings() { # for a subshell: variables say all, and uv is told what pip is told
  local line link links=''
  while IFS= read -r line; do
    [[ -z $line ]] || export "${line?}"
  done <<<"$CONF"
  export PIP_CONFIG_FILE=/dev/null PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
  for link in ${PIP_FIND_LINKS:-} $(torch_pages); do
    [[ $link == /* || $link == *://* ]] || link=$PWD/$link
    [[ $link != /* || -d $link ]] || continue # uv stops at a folder that is not there
    links+=${links:+,}$link
  done
  [[ -n ${UV_INDEX_URL:-} ]] || offer UV_DEFAULT_INDEX "${PIP_INDEX_URL:-}"
  offer UV_NO_INDEX "${PIP_NO_INDEX:-}"
  [[ -z $links ]] || export UV_FIND_LINKS=${UV_FIND_LINKS:+$UV_FIND_LINKS,}$links
  offer UV_INSECURE_HOST "${PIP_TRUSTED_HOST:-}"
  offer SSL_CERT_FILE "${PIP_CERT:-}"
  [[ -n ${https_proxy:-} ]] || offer HTTPS_PROXY "${PIP_PROXY:-}"
  offer UV_HTTP_TIMEOUT 300
  offer UV_HTTP_RETRIES 10
  UV_CACHE_DIR=$(cache_dir)
  export UV_CACHE_DIR UV_NO_BUILD=1 UV_NO_PROGRESS=1 UV_PYTHON_DOWNLOADS=never
  same_disk "$UV_CACHE_DIR" "$VENV" || offer UV_LINK_MODE copy
  if ((SYSTEM_CERTS)); then export UV_SYSTEM_CERTS=1; fi
  if ((OFFLINE)); then export UV_OFFLINE=1 PIP_NO_INDEX=1; fi
  [[ -z $links ]] || export PIP_FIND_LINKS=${links//,/ }
  if [[ -n $BUNDLE ]]; then
    unset "${!PIP_INDEX@}" "${!PIP_EXTRA_INDEX@}" "${!UV_INDEX@}" "${!UV_DEFAULT_INDEX@}"
    # A relative path has neither the spaces at which pip cuts it nor the commas at which uv does.
    export UV_NO_INDEX=1 UV_FIND_LINKS=.bootstrap/bundle/wheels
    export PIP_FIND_LINKS=$UV_FIND_LINKS
  fi
  export TMPDIR=$STATE/tmp # /tmp is often too small for what pip puts there
}
torch_pages() { # of the builds that other indexes lack; all else is to come from the usual one
  local index=${TORCH_INDEX:-https://download.pytorch.org/whl/$BUILD}
  ((OFFLINE)) || [[ $BUILD != cpu ]] || echo "$index/torch/ $index/torchvision/"
}
offer() { # NAME VALUE: set it unless it is set, or there is nothing to set
  if [[ -z ${!1:-} && -n $2 ]]; then export "$1=$2"; fi
}

# ---------------------------------------------------------------- Python

BASE='' BASE_VERSION='' # the Python that the environment is made of
REJECTED=()             # "path: why not"

readonly PROBE='
import sys
sys.path[:] = [folder for folder in sys.path if folder]
def answer(*words):
    print("|".join(words))
    sys.exit(0)
version = "%d.%d.%d" % sys.version_info[:3]
if not (3, 10) <= sys.version_info[:2] <= (3, 14):
    answer("no", version + ", and 3.10 to 3.14 is needed")
import importlib.util, platform, sysconfig
if sys.implementation.name != "cpython":
    answer("no", "not CPython but " + sys.implementation.name)
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    answer("no", version + " without the GIL, for which there are too few packages")
if sys.maxsize < 2**32 or platform.machine() != sys.argv[1]:
    answer("no", version + " for another processor: " + platform.platform())
for name in ("bz2", "ctypes", "lzma", "ssl", "zlib"):
    try:
        __import__(name)
    except ImportError:
        answer("no", version + ", built without " + name)
tools = [name for name in ("pip", "ensurepip") if importlib.util.find_spec(name)]
answer("ok", version, getattr(sys, "_base_executable", None) or sys.executable, " ".join(tools))
'
probe() { # PYTHON: "ok|version|path|tools" or "no|why"; a name on PATH proves nothing, so run it
  local answer rc=0
  answer=$(limited 5 "$1" -E -c "$PROBE" "$(uname -m)" 2>&1 </dev/null) || rc=$?
  case $rc:${answer##*$'\n'} in
    0:ok\|* | 0:no\|*) echo "${answer##*$'\n'}" ;;
    124:* | 137:*) echo "no|no answer within 5 s" ;;
    *) echo "no|exit code $rc: ${answer%%$'\n'*}" ;;
  esac
}
candidates() { # VERSION: files that may be that Python, most likely first
  local folder seen found=() folders
  IFS=: read -ra folders <<<"$PATH"
  folders+=("${CONDA_PREFIX:-}/bin" /usr/local/bin /usr/bin /opt/*/bin)
  folders+=("${HOME:-}"/.pyenv/versions/*/bin "${HOME:-}"/.local/share/uv/python/*/bin)
  folders+=("${HOME:-}"/*conda3/bin "${HOME:-}"/miniforge3/bin "${HOME:-}"/.local/bin)
  for folder in "${folders[@]}"; do
    [[ -x $folder/python$1 && ! -d $folder/python$1 ]] || continue
    for seen in ${found[@]+"${found[@]}"}; do
      [[ ! $folder/python$1 -ef $seen ]] || continue 2
    done
    found+=("$folder/python$1")
    echo "$folder/python$1"
  done
}
choose_python() { # sets BASE, or leaves it empty
  local version stamped tries=(3.13 3.14 3.12 3.11 3.10 3 '')
  if [[ $PYTHON =~ ^3\.[0-9]+$ ]]; then
    tries=("$PYTHON")
  elif [[ -n $PYTHON ]]; then
    consider "$PYTHON" || true
    return 0
  elif stamped=$(stamp_of base) && [[ -x $stamped ]] && consider "$stamped"; then
    return 0 # an environment is not remade because a newer Python has appeared
  fi
  for version in "${tries[@]}"; do
    local found=()
    mapfile -t found < <(candidates "$version")
    ((${#found[@]} == 0)) || ! consider "${found[@]}" || return 0
  done
}
consider() { # PYTHON...: probe all at the same time, take the first that is fit
  local i answers=() verdict first second tools
  mapfile -t answers < <(
    i=0
    for python in "$@"; do
      echo "$i|$(probe "$python")" &
      ((++i))
    done
    wait
  )
  mapfile -t answers < <(printf '%s\n' "${answers[@]}" | sort -n)
  for ((i = 0; i < $#; i++)); do
    IFS='|' read -r _ verdict first second tools <<<"${answers[i]}"
    if [[ $verdict == ok && -z $tools ]] && ! uv_at_hand; then
      verdict=no first="$first, with neither pip nor ensurepip (Debian: apt install python3-venv)"
    fi
    if [[ $verdict == ok ]]; then
      BASE_VERSION=$first BASE=$second
      return 0
    fi
    REJECTED+=("${*:i+1:1}: $first")
  done
  return 1
}

# ---------------------------------------------------------------- facts about the machine

existing() { # PATH: it, or its nearest folder that exists
  local path=$1
  while [[ ! -e $path ]]; do path=$(dirname -- "$path"); done
  printf '%s\n' "$path"
}
writable() { [[ -w $(existing "$1") ]]; }
readonly RUNNABLE='
import os, sys
sys.exit(bool(os.statvfs(sys.argv[1]).f_flag & getattr(os, "ST_NOEXEC", 0)))
'
runnable() { [[ -z $BASE ]] || "$BASE" -I -c "$RUNNABLE" "$(existing "$1")"; }
disk() { # PATH: "free-kB mount-point" of its file system; nothing where df gives no answer
  local free mount
  limited 3 df -Pk "$(existing "$1")" 2>/dev/null \
    | { read -r _ && read -r _ _ _ free _ mount && echo "$free $mount"; } || true
}
free_mb() {
  local free
  read -r free _ < <(disk "$1") || free=0
  echo $((free >> 10))
}
same_disk() { [[ $(mount_of "$1") == "$(mount_of "$2")" ]]; }
mount_of() { disk "$1" | cut -d ' ' -f 2-; }

CODE=0      # of the first problem found by the check
NETWORK='' # why there is none, for train to record

problem() { # CODE NAME TEXT
  row "$2" problem "$3"
  ((CODE)) || CODE=$1
}
check_system() {
  local system glibc name
  system="$(uname -s) $(uname -m)"
  case $system in
    "Linux x86_64" | "Linux aarch64") ;;
    "Darwin arm64") row system ok "macOS arm64" && return ;;
    MINGW* | MSYS* | CYGWIN*) problem 10 system "Windows: run this inside WSL 2" && return ;;
    *)
      problem 10 system "$system: PyTorch is made for Linux x86_64/aarch64 and macOS arm64"
      return
      ;;
  esac
  name=$(getconf GNU_LIBC_VERSION 2>/dev/null) || name='no glibc (musl?)'
  glibc=${name##*.}
  if [[ $name == "glibc 2."* ]] && ((${glibc%%[!0-9]*} >= 28)); then
    row system ok "$system, $name"
  else
    problem 10 system "$system, $name: PyTorch needs glibc 2.28 or newer"
    also "Ubuntu 20.04, Debian 10, RHEL 8 and newer have it; CentOS 7 never will: use a container"
  fi
}
check_python() {
  local why
  if [[ -n $BASE ]]; then
    row python ok "$BASE_VERSION, $BASE"
    return
  fi
  if [[ -n $PYTHON && $PYTHON == "$(told_by_bundle python)" ]]; then
    problem 19 python "the bundle is for Python $PYTHON, and none that is fit is here"
    also "on the other machine, for one that is: $SELF bundle OUT --python 3.X"
  else
    problem 11 python "none that is fit; install Python 3.10 to 3.14, or name one: --python PATH"
  fi
  for why in ${REJECTED[@]+"${REJECTED[@]}"}; do also "$why"; done
}
# Measured: 6 GB of packages in the cache; linked into the environment where both lie on one disk,
# copied (6 GB again) where not. pip unpacks what it downloads, so holds all of it twice.
check_disk() {
  local cache need=7 where
  cache=$(cache_dir)
  if env_ready; then need=0; fi
  if [[ $INSTALLER == pip ]]; then need=12 cache=$VENV; fi
  if ! same_disk "$cache" "$VENV"; then check_room 6 "$cache" "the installer's cache"; fi
  check_room "$need" "$VENV" "the environment"
  for where in "$VENV" "$STATE"; do
    writable "$where" || problem 13 write "not allowed in $where; try --venv DIR, or another copy"
    runnable "$where" || problem 13 exec \
      "$where lies on a disk mounted noexec, which runs no programs; try --venv DIR, or another copy"
  done
}
check_room() { # GB PATH WHAT
  local free mount text
  if ! read -r free mount < <(disk "$2"); then
    row disk note "df gives no answer for $2; $3 needs about $1 GB"
    return
  fi
  text="$((free >> 20)) GB free on $mount, $3 needs about $1 GB"
  if env_ready; then
    row disk ok "$((free >> 20)) GB free on $mount; the environment is there"
  elif ((free >> 20 >= $1)); then
    row disk ok "$text"
  elif [[ -e $VENV/.incomplete ]]; then # part of it is there already
    row disk note "$text, less what an earlier run has left there"
  else
    problem 12 disk "$text (move it with --venv DIR, UV_CACHE_DIR=DIR)"
  fi
}
# By field, never from the banner, and with a limit, as a driver in trouble answers never.
readonly ASK_DRIVER='
import sys
sys.path.insert(0, sys.argv[1])
from vqa_repro.install.driver import driver_facts
from vqa_repro.install.torch_builds import check_lines
print(*check_lines(driver_facts(4), sys.argv[2]), sep="\n")
'
ask_driver() {
  local asked
  asked=$(known_build)
  "$BASE" -I -B -c "$ASK_DRIVER" "$PROJECT" "${asked:-auto}" 2>&1 </dev/null \
    || echo "note|the cards could not be looked at"
}
check_gpu() { # file descriptor 3: ask_driver's answer; sets BUILD
  local kind text build='' none=''
  while IFS='|' read -r -u 3 kind text; do
    case $kind in
      build) build=$text ;;
      none) none=$text ;;
      ok | note) row gpu "$kind" "$text" ;;
      *) row gpu note "$kind" ;; # an error of Python's
    esac
  done
  exec 3<&-
  if [[ -n $none ]]; then
    problem 20 torch "$none"
  elif use_build "${build:-$(told_by_bundle torch)}"; then
    row torch ok "the build $BUILD, as ${LOCKFILE##*/} names it"
  else
    lacking_lock
  fi
}

BUILD='' # of torch, once it is settled

known_build() { # what was asked for, or else what the environment has
  local stamped=''
  if [[ -e $VENV/.finished ]]; then
    stamped=$(stamp_of torch)
    stamped=${stamped:-cu130} # what was made before there were others
  fi
  echo "${TORCH/auto/$stamped}"
}
use_build() { # [NAME]: install what its lock names; false where that is not here
  BUILD=${1:-cu130}
  LOCKFILE=$PROJECT/requirements-$BUILD.lock
  [[ $BUILD != cu130 ]] || LOCKFILE=$PROJECT/requirements.lock
  LOCKFILES[0]=$LOCKFILE
  [[ -f $LOCKFILE ]]
}
lacking_lock() {
  problem 20 torch "the build $BUILD is wanted, and requirements-$BUILD.lock is not here"
  also "where its packages can be reached: python .ci/make_lock.py --torch $BUILD;"
  also "then copy that file here. To train on the CPU until then: export CUDA_VISIBLE_DEVICES=''"
}
readonly CONNECT='
import os, socket, sys, urllib.parse, urllib.request
url = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("UV_INDEX_URL") or sys.argv[1]
parts = urllib.parse.urlsplit(url)
if "https" in urllib.request.getproxies() or parts.scheme not in ("http", "https"):
    print("yes, through a proxy" if parts.scheme[:4] == "http" else "not needed: " + url)
    sys.exit()
try:
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    socket.create_connection((parts.hostname, port), 1).close()
    print("yes (%s answers)" % parts.hostname)
except OSError as error:
    print("no (%s: %s)" % (parts.hostname, error.strerror or error))
'
check_network() {
  local answer
  if ((OFFLINE)); then
    answer="not used ($([[ -n $BUNDLE ]] && echo --bundle || echo --offline))"
  else
    answer=$(
      package_settings
      limited 1.5 "$BASE" -I -c "$CONNECT" https://download.pytorch.org/
    ) || answer="no (no answer)"
  fi
  if [[ $answer == yes* || $answer == "not needed"* ]]; then
    row network ok "$answer"
  else
    row network note "$answer"
    NETWORK=$answer
  fi
}

# ---------------------------------------------------------------- the lock

OWN_LOCK='' # what the lock says while it is ours

# A symbolic link whose target names the owner: made at one stroke with its contents, everywhere.
take_lock() {
  local me owner pid began host since end=$((SECONDS + LOCK_WAIT)) waiting='' odd=0
  printf -v me '%s %s %s %(%F %T)T' $$ "$(started $$)" "${HOSTNAME:-?}" -1
  mkdir -p "$STATE" 2>/dev/null \
    || fail 13 "cannot write into $PROJECT" "no permission" "copy the project to a folder of yours"
  until ln -s "$me" "$STATE/lock" 2>/dev/null; do
    if ! owner=$(readlink "$STATE/lock"); then # released this moment, or no lock can be made
      ((++odd < 20)) || fail 13 "cannot make a lock in $STATE" \
        "$(ln -s "$me" "$STATE/lock" 2>&1 || true)" "mend that, or copy the project to another disk"
      sleep 0.1
      continue
    fi
    read -r pid began host since <<<"$owner"
    if [[ $host == "${HOSTNAME:-?}" ]] && ! alive "$pid" "$began"; then
      take_over "$owner" && say "  process $pid was killed before it was done: continuing its work"
      continue
    fi
    [[ -n $waiting ]] || say "  waiting for process $pid on $host, at work here since $since"
    waiting=yes
    ((SECONDS < end)) || fail 16 "another bootstrap is at work here" \
      "process $pid on $host, since $since" "wait for it; if it is no more: rm '$STATE/lock'"
    sleep 0.5
  done
  OWN_LOCK=$me
  # Of a run that was killed, the installer may still be at work.
  if { read -r pid began <"$STATE/child"; } 2>/dev/null && alive "$pid" "$began"; then
    end_group "$pid"
  fi
  rm -f "$STATE/child"
}
take_over() { # OWNER: two may try this at once, so look at what was really taken
  mv "$STATE/lock" "$STATE/lock.$$" 2>/dev/null || return 1
  local taken
  taken=$(readlink "$STATE/lock.$$")
  rm "$STATE/lock.$$"
  [[ $taken == "$1" ]] || { ln -s "$taken" "$STATE/lock" 2>/dev/null && return 1; }
}
release_lock() {
  if [[ -n $OWN_LOCK && $(readlink "$STATE/lock") == "$OWN_LOCK" ]]; then rm -f "$STATE/lock"; fi
  OWN_LOCK=''
}

# ---------------------------------------------------------------- bundles

OPENED='' # yes: what the bundle offers lies in STATE/bundle

told_by_bundle() { # KEY: what bundle.json says, before it is verified; nothing where there is none
  local found
  [[ -n $BUNDLE && -f $BUNDLE/bundle.json ]] || return 0
  found=$(head -c 9999 "$BUNDLE/bundle.json" \
    | sed -n "s/^ \"$1\": \"\(3\.1[0-4]\|cu130\|cu128\|cu126\|cpu\)\",\$/\1/p")
  echo "${found%%$'\n'*}"
}
# shellcheck disable=SC2329 # called through attached
bundle_py() { # VERB ARGUMENTS..., under the lock
  trap - ERR
  note_child
  if [[ $1 == make ]]; then package_settings; fi
  cd -- "$PROJECT"
  exec "$BASE" -E -s -B -m vqa_repro.install.bundle "$@"
}
open_bundle() { # verify all of it, once
  [[ -z $OPENED || ! -d $STATE/bundle ]] || return 0
  say "  bundle: $BUNDLE"
  attached bundle_py open "$BUNDLE" --into "$STATE/bundle" \
    --python "${BASE_VERSION%.*}" --torch "${BUILD:-cu130}"
  ((RC == 0)) || fail "$RC" "nothing is taken from the bundle" "see above" "mend that, then $SELF"
  OPENED=yes
}
close_bundle() {
  [[ -n $OPENED ]] || return 0
  take_lock
  rm -rf "$STATE/bundle"
  release_lock
}

# ---------------------------------------------------------------- the installer

UV='' # empty: pip

pinned_uv() { sed -n 's/^uv==\([^ ]*\).*/\1/p' "$LOCKFILE"; }
uv_at_hand() {
  [[ $INSTALLER != pip ]] || return 1
  [[ -z $BUNDLE ]] || return 0
  [[ -x $STATE/uv-$(pinned_uv)/uv ]] || command -v uv >/dev/null
}

# pip of the base Python, or the wheel of it that its ensurepip carries.
readonly BASE_PIP='
import glob, os, runpy, sys
sys.path[:] = [folder for folder in sys.path if folder]
try:
    import pip
except ImportError:
    import ensurepip
    folder = getattr(ensurepip, "_WHEEL_PKG_DIR", None) or os.path.dirname(ensurepip.__file__)
    wheels = glob.glob(os.path.join(folder, "**", "pip-*.whl"), recursive=True)
    sys.path.insert(0, wheels[0])
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__", alter_sys=True)
'
choose_installer() { # sets UV, and says why
  local version own why
  version=$(pinned_uv)
  own=$STATE/uv-$version
  if [[ $INSTALLER == pip ]]; then
    say "  installer: pip, as asked"
  elif [[ -x $own/uv ]]; then
    UV=$own/uv
    say "  installer: uv $version, as requirements.lock names it, kept from before"
  elif ((DRY_RUN)); then
    say "  installer: uv $version would be fetched, or else what is at hand be used"
  elif [[ -z $version ]]; then
    why="requirements.lock names no uv"
  elif fetch_uv "$version" "$own"; then
    UV=$own/uv
    say "  installer: uv $version, as requirements.lock names it, fetched just now"
  else
    why="uv $version could not be fetched: $(tail -n 1 "$LOG")"
  fi
  [[ -n ${why:-} ]] || return 0
  if UV=$(command -v uv) && version=$("$UV" --version 2>/dev/null); then
    say "  installer: $version found at $UV, as $why"
  elif [[ $INSTALLER == uv ]]; then
    fail 14 "no uv" "$why" "$MAKE --installer pip"
  else
    UV=''
    say "  installer: pip, as $why"
  fi
}
fetch_uv() { # VERSION FOLDER
  local scratch=$STATE/fetch # under the lock, so ours
  rm -rf "$scratch"
  mkdir -p "$scratch"
  if [[ -n $BUNDLE ]]; then # verified, and needs no pip
    open_log
    RC=0
    cp "$STATE/bundle/wheels/uv-$1"-*.whl "$scratch" 2>>"$LOG" || return 1
  else
    fetch_wheel_of_uv "$scratch"
  fi
  if ((RC)); then return 1; fi
  "$BASE" -I -m zipfile -e "$scratch"/uv-*.whl "$scratch" >>"$LOG" 2>&1 || return 1
  mv "$scratch/uv-$1.data/scripts" "$scratch/bin" && chmod +x "$scratch/bin/uv" || return 1
  "$scratch/bin/uv" --version >>"$LOG" 2>&1 || return 1
  rm -rf "$2" && mv "$scratch/bin" "$2" && rm -rf "$scratch"
}
fetch_wheel_of_uv() { # FOLDER
  sed -n '/^uv==/,/[^\\]$/p' "$LOCKFILE" >"$1/uv.txt"
  logged "fetching uv" "$BASE" -E -c "$BASE_PIP" download --quiet --no-deps --require-hashes \
    --only-binary :all: --retries 2 --dest "$1" -r "$1/uv.txt"
}

# ---------------------------------------------------------------- the environment

# VENV/.incomplete: being made or changed. VENV/.finished: done, and from what ("key value" lines).
digest() { cat "${LOCKFILES[@]}" | { sha256sum || shasum -a 256; } 2>/dev/null | cut -d ' ' -f 1; }
stamp_of() { # KEY
  sed -n "s/^$1 //p" "$VENV/.finished" 2>/dev/null
}
READY='' # remembered: yes or no
env_ready() {
  if [[ -z $READY ]]; then
    READY=no
    if [[ ! -e $VENV/.incomplete && -e $VENV/.finished && -f ${LOCKFILES[0]} ]] && same_place \
      && [[ $(stamp_of lock) == "$(digest)" ]] \
      && [[ $INSTALLER == auto || $INSTALLER == "$(stamp_of installer)" ]]; then
      READY=yes
    fi
  fi
  [[ $READY == yes ]]
}
same_place() { # the stamp's environment was made here, of this Python, and runs
  [[ $(stamp_of venv) == "$VENV" && $(stamp_of project) == "$PROJECT" ]] || return 1
  [[ -z $PYTHON || $BASE -ef $(stamp_of base) ]] || return 1
  [[ $("$VENV/bin/python" -I -c 'import platform as p; print(p.python_version())' 2>/dev/null) \
    == "$(stamp_of python)" ]]
}
CUT='' # yes: an installation was cut off, by a kill or by the network
make_venv() {
  local why command
  if [[ -e $VENV && ! -e $VENV/.incomplete && ! -e $VENV/.finished ]] \
    && [[ ! -d $VENV || -n $(ls -A "$VENV") ]]; then
    fail 2 "$VENV is in the way" "it was not made by bootstrap.sh, so it is left alone" \
      "$MAKE --venv OTHER_FOLDER, or remove it yourself"
  fi
  why=$(mkdir -p -- "$VENV" 2>&1) || fail 13 "cannot make $VENV" "$why" "$MAKE --venv DIR"
  # A package that an earlier run had half linked counts as installed, so begin anew; what was
  # downloaded is in the cache.
  if [[ -e $VENV/.incomplete ]]; then CUT=yes; fi
  if [[ -n $CUT ]] || ! same_place; then
    : >"$VENV/.incomplete"
    (cd -- "$VENV" && find . -mindepth 1 ! -path ./.incomplete -delete)
  fi
  : >"$VENV/.incomplete"
  rm -f "$VENV/.finished"
  [[ ! -x $VENV/bin/python ]] || return 0
  command=("$BASE" -I -m venv)
  [[ -z $UV ]] || command=("$UV" venv --quiet --no-project --allow-existing --python "$BASE")
  logged "making the environment" "${command[@]}" "$VENV"
  ((RC == 0)) || explain_failure "the environment could not be made"
}
install_packages() {
  local try command network='connect|timed? ?out|request|network|resolve|certificate|http|reset'
  local lasting='hash mismatch|do not match|no space left|quota|permission denied|read-only'
  command=("$VENV/bin/python" -I -m pip install --no-deps "${LOCKFILES[@]/#/--requirement=}")
  [[ -z $UV ]] || command=("$UV" pip sync --python "$VENV/bin/python" "${LOCKFILES[@]}")
  for try in 1 2 3; do
    [[ -z $CUT || -z $UV ]] || ((OFFLINE)) || install_big_wheels
    logged "installing the packages" "${command[@]}" --require-hashes --only-binary :all:
    if ((RC == 0)); then break; fi
    if ((try == 3 || OFFLINE)) || ! log_says "$network" || log_says "$lasting"; then
      explain_failure "the packages could not be installed"
    fi
    say "  the network failed; what has arrived is kept; trying again in $((try * 5)) s"
    CUT=yes
    # Some networks sign with a certificate that only the system knows.
    if log_says certificate; then SYSTEM_CERTS=1; fi
    attached sleep $((try * 5))
  done
  [[ -n $UV ]] || remove_extras
  rm -rf "$STATE/tmp" "$STATE/big"
}
install_big_wheels() { # by a downloader that goes on where it was cut; what fails is left to uv
  local big=$STATE/big command
  command=("$BASE" -E -s -B -m vqa_repro.install.big_wheels "$big" --python "${BASE_VERSION%.*}")
  logged "fetching the big packages" "${command[@]}" --uv "$UV" --venv "$VENV" "${LOCKFILES[@]}"
  if ((RC)) && (($(free_mb "$STATE") < 4000)); then rm -rf "$big"; fi # uv needs the room more
  if ((RC)) || [[ ! -s $big/wanted.lock ]]; then return; fi
  command=("$UV" pip install --python "$VENV/bin/python" --no-deps --no-index)
  logged "installing the big packages" "${command[@]}" --find-links "$big/wheels" \
    --require-hashes --requirement "$big/wanted.lock"
}
remove_extras() { # as uv pip sync does
  local extras uninstall=("$VENV/bin/python" -I -m pip uninstall -y)
  mapfile -t extras < <("$VENV/bin/python" -I - "${LOCKFILES[@]}" <<'PYTHON'
import importlib.metadata as metadata, re, sys
def canonical(name):
    return re.sub("[-_.]+", "-", name).lower()
lines = [line for path in sys.argv[1:] for line in open(path)]
locked = {canonical(line.split("==")[0]) for line in lines if "==" in line}
for name in {canonical(each.metadata["Name"]) for each in metadata.distributions()}:
    if name not in locked | {"pip"}:
        print(name)
PYTHON
  )
  if ((${#extras[@]} == 0)); then return; fi
  logged "removing ${extras[*]}" "${uninstall[@]}" "${extras[@]}"
  ((RC == 0)) || explain_failure "superfluous packages could not be removed"
}
log_says() { tail -c "+$((LOG_FROM + 1))" "$LOG" | grep -qiE "$1"; }
explain_failure() { # WHAT
  if log_says 'hash mismatch|do not match the hashes'; then
    fail 15 "$1" "what arrived is not what the *.lock files name" \
      "try another index or mirror; if it stays: python .ci/make_lock.py and read the difference"
  elif log_says 'no space left|quota exceeded' || (($(free_mb "$VENV") < 100)); then
    fail 12 "$1" "no room on the disk" "make room, then $MAKE; or --venv DIR, UV_CACHE_DIR=DIR"
  elif log_says 'permission denied|read-only file system'; then
    fail 13 "$1" "no permission to write" "$MAKE --venv DIR, UV_CACHE_DIR=DIR"
  elif ((OFFLINE)); then
    fail 14 "$1" "not all packages are here, and --offline forbids to fetch them" \
      "$MAKE, without --offline; or PIP_FIND_LINKS=FOLDER with the wheels"
  fi
  fail 14 "$1" "the last lines of the log say it" "$MAKE (what has arrived is kept)"
}
# The packages' folder learns where the project is, so that python -m vqa_repro.X works from
# anywhere. As an escaped import line: a path file is otherwise read in the locale's encoding.
readonly ADD_PROJECT='
import os, sys, sysconfig
path = os.path.join(sysconfig.get_path("purelib"), "vqa_repro_project.pth")
with open(path, "w", encoding="ascii") as file:
    file.write("import sys; sys.path.append(%s)\n" % ascii(sys.argv[1]))
print(sys.version.split()[0])
'
finish_env() {
  local version
  version=$("$VENV/bin/python" -I -c "$ADD_PROJECT" "$PROJECT")
  printf '%s\n' "lock $(digest)" "python $version" "base $BASE" "venv $VENV" \
    "project $PROJECT" "torch ${BUILD:-cu130}" \
    "installer $([[ -n $UV ]] && echo uv || echo pip)" >"$VENV/.finished.new"
  mv "$VENV/.finished.new" "$VENV/.finished"
  rm "$VENV/.incomplete"
  READY=yes
}

make_env() { # what LOCKFILES name, in VENV
  take_lock
  READY=''
  if env_ready; then
    say "  the other process has made it"
  else
    [[ -z $BUNDLE ]] || open_bundle
    choose_installer
    make_venv
    install_packages
    finish_env
    FRESH=yes
    say "  done in $SECONDS s"
  fi
  release_lock
}

# ---------------------------------------------------------------- JupyterLab

SERVER='' SINCE=''  # the process that runs here, and since when
PORT='' URL_PATH='' # where it listens; its path with the token

# Its kernel, and settings that arguments after -- override; in the environment, not in the home.
# Nothing here asks the internet: no news, no updates, no extensions to be had.
readonly CONFIGURE='
import json, os, sys
project, python = sys.argv[1:]
def write(value, *path):
    path = os.path.join(sys.prefix, *path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="ascii") as file:
        json.dump(value, file, indent=1)
command = [python, "-I", "-Xfrozen_modules=off", "-m", "ipykernel_launcher"]
kernel = {"argv": command + ["-f", "{connection_file}"], "display_name": "vqa_repro"}
kernel.update(language="python", metadata={"debugger": True})
write(kernel, "share", "jupyter", "kernels", "vqa_repro", "kernel.json")
server = {"ip": "127.0.0.1", "port": 8888, "open_browser": False, "root_dir": project}
server.update(allow_root=os.geteuid() == 0)
lab = {"default_url": "/lab/tree/notebooks/tour.ipynb", "extension_manager": "readonly"}
lab.update(check_for_updates_class="jupyterlab.NeverCheckForUpdate", news_url=None)
kernels = {"allowed_kernelspecs": ["vqa_repro"], "ensure_native_kernel": False}
write({"ServerApp": server, "LabApp": lab, "KernelSpecManager": kernels,
    "MultiKernelManager": {"default_kernel_name": "vqa_repro"}},
    "etc", "jupyter", "jupyter_server_config.json")
names = "apputils-extension:announcements", "extensionmanager-extension"
write({"disabledExtensions": {"@jupyterlab/" + name: True for name in names}},
    "etc", "jupyter", "labconfig", "page_config.json")
'
# The token comes on standard input: what other users see of a process is its command line.
readonly TUNNEL='
import sys
from vqa_repro.web.tunnel import tunnel_lines
print(*tunnel_lines(int(sys.argv[1]), sys.stdin.read().strip()), sep="\n")
'
find_server() { # sets SERVER and the like; false if none runs here
  local began file
  SERVER='' PORT='' URL_PATH=''
  { read -r SERVER began SINCE <"$JUPYTER/server"; } 2>/dev/null || return 1
  if ! alive "$SERVER" "$began"; then
    SERVER=''
    return 1
  fi
  file=$JUPYTER/runtime/jpserver-$SERVER.json # written by Jupyter when it listens
  # The token first: it is the later line, so where it is written the port is, too.
  URL_PATH=$(sed -n 's/^ *"base_url": "\(.*\)".*/\1/p; s/^ *"token": "\(..*\)".*/?token=\1/p' \
    "$file" 2>/dev/null | tr -d '\n') || true
  PORT=$(sed -n 's/^ *"port": \([0-9]*\).*/\1/p' "$file" 2>/dev/null) || true
}
start_server() { # ENVIRONMENT: of the kernel
  (
    umask 077
    mkdir -p "$JUPYTER"
    : >"$JUPYTER/log"
  )
  "$VENV/bin/python" -I -c "$CONFIGURE" "$PROJECT" "$1/bin/python"
  set -m # a process group of its own
  (
    trap - ERR EXIT INT TERM
    trap '' HUP # a dropped connection
    unset "${!JUPYTER_@}"
    export JUPYTER_CONFIG_DIR=$STATE/jupyter/config JUPYTER_DATA_DIR=$STATE/jupyter/data
    export JUPYTER_RUNTIME_DIR=$JUPYTER/runtime IPYTHONDIR=$STATE/jupyter/ipython
    export VIRTUAL_ENV=$1 PATH=$1/bin:$PATH # for JupyterLab's terminals
    cd -- "$PROJECT"
    exec "$VENV/bin/python" -I -m jupyterlab ${REST[@]+"${REST[@]}"}
  ) </dev/null >>"$JUPYTER/log" 2>&1 &
  set +m
  CHILD=$! # until it listens, Ctrl-C ends it
  printf '%s %s %(%F %T)T\n' "$CHILD" "$(started "$CHILD")" -1 >"$JUPYTER/server"
}
await_server() { # until it listens
  local end=$((SECONDS + 300)) # a slow disk takes minutes over the first imports
  until find_server && [[ $URL_PATH == *token=* ]]; do
    if [[ -z $SERVER ]]; then
      LOG=$JUPYTER/log LOG_FROM=0
      fail 18 "JupyterLab does not start" "the last lines of its log say it" "$SELF jupyter"
    fi
    ((SECONDS < end)) || end_group "$SERVER"
    sleep 0.1
  done
  CHILD=''
}
stop_server() {
  if ! find_server; then
    say "jupyter: none runs on ${HOSTNAME:-?}"
    return
  fi
  if ((DRY_RUN)); then
    say "jupyter: would stop process $SERVER"
    return
  fi
  end_group "$SERVER" 300 # Jupyter ends its kernels first; one that trains is given time to save
  rm -f "$JUPYTER/server"
  say "jupyter: stopped (process $SERVER)"
}

# ---------------------------------------------------------------- the stages

CHECKED='' FRESH='' WITHOUT=''

stage_check() {
  need_python
  [[ -z $BASE ]] || exec 3< <(ask_driver)
  say "check: is this machine fit?"
  check_system
  check_python
  check_disk
  if [[ -n $BASE ]]; then
    check_gpu
    check_network
  fi
  [[ -z $USED ]] || row settings ok "used:$USED"
  [[ -z $SET_ASIDE ]] || row settings note "set aside:$SET_ASIDE"
  CHECKED=yes
  ((CODE == 0)) || fail "$CODE" "this machine is not fit yet" "see each problem above" \
    "mend them, then $SELF (or $SELF --skip check, if you know better)"
}
need_python() { # once
  [[ -z $BASE && ${#REJECTED[@]} == 0 ]] || return 0
  choose_python
  [[ -z $BASE ]] || read_settings
}
stage_env() {
  [[ -z $PYTHON ]] || need_python
  if env_ready; then
    say "env: up to date ($VENV)"
    return
  fi
  [[ -n $CHECKED || " $SKIP " == *" check "* ]] || stage_check
  need_python
  [[ -n $BASE ]] || fail 11 "no usable Python" "${REJECTED[*]-none found}" "$SELF check"
  say "env: $VENV, Python $BASE_VERSION"
  if [[ -z $CHECKED ]]; then # the lock depends on the cards
    exec 3< <(ask_driver)
    check_gpu
    ((CODE == 0)) || fail "$CODE" "nothing is installed" "see above" "mend that, then $MAKE"
  fi
  if ((DRY_RUN)); then
    choose_installer
    say "  would install what the *.lock files name, wheels only, hashes required"
    return
  fi
  make_env
}
stage_checkpoint() {
  local names=(vgg19) options=() python=$VENV/bin/python file
  local mend="python checkpoints_setup.py vgg19 [--from FILE|DIR|URL]"
  local why=([3]="no source had it" [4]="only wrong bytes" [5]="busy" [6]="no room for it")
  ((OFFLINE == 0)) || options+=(--offline)
  say "checkpoint: VGG-19"
  if ((DRY_RUN)); then
    say "  would run: python checkpoints_setup.py vgg19"
    return
  fi
  if ! env_ready; then
    need_python
    [[ -n $BASE ]] || fail 11 "no usable Python" "${REJECTED[*]-none found}" "$SELF check"
    python=$BASE
  fi
  if [[ -n $BUNDLE ]] && { [[ -n $OPENED ]] \
    || ! "$python" "$PROJECT/checkpoints_setup.py" vgg19 --offline </dev/null &>/dev/null; }; then
    need_python
    take_lock
    open_bundle
    release_lock
    options+=(--from "$STATE/bundle/checkpoints")
    for file in "$STATE"/bundle/checkpoints/*.pth; do
      [[ ! -e $file ]] || names+=("${file##*/}")
    done
  fi
  attached "$python" "$PROJECT/checkpoints_setup.py" "${names[@]}" ${options[@]+"${options[@]}"}
  case $VERB:$RC in
    *:0) ;;
    all:[3-6] | bundle:[3-6])
      WITHOUT+="checkpoint: no VGG-19, ${why[RC]}"$'\n'
      say "  ${YELLOW}going on without it${PLAIN}; later: $mend"
      ;;
    *) fail "$RC" "no checkpoint" "see above" "$mend" ;;
  esac
}
stage_bundle() {
  local options=(--torch "$BUILD")
  say "bundle: $OUT"
  need_python
  [[ -n $BASE ]] || fail 11 "no usable Python" "${REJECTED[*]-none found}" "$SELF check"
  options+=(--python "${TARGET:-${BASE_VERSION%.*}}")
  [[ -z $SPLIT ]] || options+=(--split "$SPLIT")
  if ((DRY_RUN)); then
    say "  would fetch what the *.lock files name: ${options[*]}"
    return
  fi
  take_lock
  attached bundle_py make "$OUT" "${options[@]}"
  release_lock
  ((RC == 0)) || fail "$RC" "no bundle" "see above" "the same command again: it continues"
}
stage_doctor() {
  say "doctor: does it compute correctly?"
  if ((DRY_RUN)); then
    say "  would run: python -m vqa_repro.doctor"
    return
  fi
  need_env
  close_bundle
  [[ -z $FRESH ]] || say "  (first imports take long, on slow or network disks some minutes)"
  attached "$VENV/bin/python" -m vqa_repro.doctor
  ((RC == 0)) || fail 17 "something is broken" "see above" "do as told there, then $SELF doctor"
}
stage_train() {
  say "train: python -m vqa_repro.train --resume${REST[*]:+ ${REST[*]}}"
  if ((DRY_RUN)); then return; fi
  need_env
  close_bundle
  [[ -z $NETWORK ]] || WITHOUT+="internet: $NETWORK"$'\n'
  export VQA_REPRO_WITHOUT=$WITHOUT
  exec "$VENV/bin/python" -m vqa_repro.train --resume ${REST[@]+"${REST[@]}"}
}
stage_test() {
  if ((DRY_RUN)); then
    say "test: would run python -m pytest ${REST[*]:-}"
    return
  fi
  need_env
  close_bundle
  cd -- "$PROJECT"
  exec "$VENV/bin/python" -m pytest ${REST[@]+"${REST[@]}"}
}
stage_jupyter() {
  local env=$VENV
  # The environment of JupyterLab, for all that is called from here.
  local VENV=$env/jupyter LOCKFILES=("$PROJECT/jupyter.lock") READY='' MAKE="$SELF jupyter"
  if ((DRY_RUN)); then
    env_ready || say "jupyter: would install what jupyter.lock names in $VENV"
    say "jupyter: would start JupyterLab on 127.0.0.1${REST[*]:+, with ${REST[*]}}"
    return
  fi
  VENV=$env need_env
  if ! env_ready; then
    VENV=$env need_python # the same as the environment's
    say "jupyter: $VENV"
    make_env
  fi
  take_lock
  if find_server; then
    say "jupyter: runs since $SINCE (process $SERVER on ${HOSTNAME:-?})"
    ((${#REST[@]} == 0)) || say "  its arguments stay as they were; first: $SELF jupyter stop"
  else
    say "jupyter: starting JupyterLab"
    start_server "$env"
  fi
  await_server
  release_lock
  "$env/bin/python" -I -c "$TUNNEL" "$PORT" <<<"$URL_PATH"
  say "to stop it: $SELF jupyter stop"
}
need_env() {
  [[ -x $VENV/bin/python ]] || fail 2 "no environment in $VENV" "stage env was left out" "$SELF env"
}

# ---------------------------------------------------------------- arguments

bad_usage() {
  echo "error: $1; see $SELF --help" >&2
  exit 2
}
read_arguments() {
  VERB=all REST=() STOP=''
  SKIP=${VQA_SKIP:-} DRY_RUN=${VQA_DRY_RUN:-0} PYTHON=${VQA_PYTHON:-} OFFLINE=${VQA_OFFLINE:-0}
  VENV=${VQA_VENV:-$PROJECT/.venv} INSTALLER=${VQA_INSTALLER:-auto}
  LOCK_WAIT=${VQA_LOCK_WAIT:-1800}
  TORCH=${VQA_TORCH:-auto} TORCH_INDEX=${VQA_TORCH_INDEX:-} BUNDLE=${VQA_BUNDLE:-}
  OUT='' SPLIT='' TARGET='' # of bundle: the folder, the limit, the Python it is for
  local stage file
  while (($#)); do
    case $1 in
      --skip=* | --python=* | --venv=* | --installer=* | --lock-wait=* | \
        --torch=* | --torch-index=* | --bundle=* | --split=*)
        set -- "${1%%=*}" "${1#*=}" "${@:2}"
        continue
        ;;
      --skip | --python | --venv | --installer | --lock-wait | \
        --torch | --torch-index | --bundle | --split)
        [[ -n ${2:-} ]] || bad_usage "$1 needs a value"
        ;;&
      --skip) SKIP+=" $2" && shift ;;
      --python) PYTHON=$2 && shift ;;
      --venv) VENV=$2 && shift ;;
      --installer) INSTALLER=$2 && shift ;;
      --lock-wait) LOCK_WAIT=$2 && shift ;;
      --torch) TORCH=$2 && shift ;;
      --torch-index) TORCH_INDEX=$2 && shift ;;
      --bundle) BUNDLE=$2 && shift ;;
      --split) SPLIT=$2 && shift ;;
      --dry-run) DRY_RUN=1 ;;
      --offline) OFFLINE=1 ;;
      -h | --help) usage && exit 0 ;;
      --) REST=("${@:2}") && break ;;
      check | env | checkpoint | doctor | train | jupyter)
        [[ $VERB == all ]] || bad_usage "one stage at a time: '$VERB' or '$1'"
        VERB=$1
        ;;
      bundle)
        [[ $VERB == all ]] || bad_usage "one stage at a time: '$VERB' or '$1'"
        [[ -n ${2:-} && $2 != -* ]] || bad_usage "bundle needs a folder to make: $SELF bundle OUT"
        VERB=bundle OUT=$2 && shift
        ;;
      stop)
        [[ $VERB == jupyter ]] || bad_usage "'stop' is for jupyter: $SELF jupyter stop"
        STOP=stop
        ;;
      test)
        [[ $VERB == all ]] || bad_usage "one stage at a time: '$VERB' or '$1'"
        VERB=test REST=("${@:2}") && break
        ;;
      *) bad_usage "unknown argument '$1' (arguments for train and jupyter go after --)" ;;
    esac
    shift
  done
  for stage in $SKIP; do
    [[ " ${STAGES[*]} " == *" $stage "* ]] || bad_usage "--skip: no stage '$stage'"
  done
  [[ $DRY_RUN$OFFLINE =~ ^[01][01]$ ]] || bad_usage "VQA_DRY_RUN and VQA_OFFLINE are 0 or 1"
  [[ $INSTALLER =~ ^(auto|uv|pip)$ ]] || bad_usage "no installer '$INSTALLER'; uv, pip or auto"
  [[ $LOCK_WAIT =~ ^[0-9]{1,9}$ ]] || bad_usage "--lock-wait is in seconds, not '$LOCK_WAIT'"
  [[ $TORCH =~ ^(auto|cu130|cu128|cu126|cpu)$ ]] || bad_usage "no torch '$TORCH'; auto, cu130, cu128, cu126, cpu"
  [[ -z $SPLIT || $VERB == bundle ]] || bad_usage "--split goes with bundle OUT"
  if [[ $VERB == bundle ]]; then
    [[ $OUT == /* ]] || OUT=$PWD/$OUT
    [[ -z $BUNDLE ]] || bad_usage "--bundle installs from a bundle, bundle OUT makes one"
    [[ ! $PYTHON =~ ^3\.[0-9]+$ ]] || TARGET=$PYTHON PYTHON=''
  elif [[ -n $BUNDLE ]]; then
    [[ -d $BUNDLE ]] || bad_usage "--bundle: there is no folder $BUNDLE"
    [[ $BUNDLE == /* ]] || BUNDLE=$PWD/$BUNDLE
    OFFLINE=1
    [[ -n $PYTHON ]] || PYTHON=$(told_by_bundle python)
  fi
  if [[ -n $PYTHON && ! $PYTHON =~ ^3\.[0-9]+$ ]]; then
    PYTHON=$(command -v -- "$PYTHON") || bad_usage "--python: no such program as named"
    [[ $PYTHON == /* ]] || PYTHON=$PWD/$PYTHON
  fi
  if [[ ${#REST[@]} != 0 && ! $VERB =~ ^(all|train|test|jupyter)$ ]]; then
    bad_usage "stage $VERB takes no arguments after --"
  fi
  [[ $VENV == /* ]] || VENV=$PWD/$VENV
  VENV=${VENV%/}
  for file in "${LOCKFILES[@]}" "$PROJECT/jupyter.lock"; do
    [[ -f $file ]] || bad_usage "no $file: this is not a whole copy of the project"
  done
}

main() {
  local stage stages known
  read_arguments "$@"
  clean_environment
  case $VERB$STOP in
    all) stages=("${STAGES[@]}") ;;
    check | env | checkpoint) stages=("$VERB") ;;
    jupyterstop)
      stop_server
      return
      ;;
    bundle) stages=(checkpoint bundle) ;;
    *) stages=(env "$VERB") ;;
  esac
  known=$(known_build)
  if [[ $VERB == bundle ]]; then known=${TORCH/auto/cu130}; fi # not for this machine's cards
  [[ -z $known ]] || use_build "$known" || true                # what lacks, the check says
  for stage in "${stages[@]}"; do
    [[ " $SKIP " != *" $stage "* ]] || continue
    case $stage in
      check) stage_check ;;
      env) stage_env ;;
      checkpoint) stage_checkpoint ;;
      doctor) stage_doctor ;;
      train) stage_train ;;
      test) stage_test ;;
      jupyter) stage_jupyter ;;
      bundle) stage_bundle ;;
    esac
  done
  close_bundle
  if [[ $VERB == env || " $SKIP " == *" train "* ]]; then say "next: $SELF train"; fi
}

main "$@"
exit
}
