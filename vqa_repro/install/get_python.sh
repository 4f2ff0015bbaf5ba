# Fetch a Python for bootstrap.sh, which reads this file where no Python of the machine is fit.
#
# It takes no root, conda or compiler. curl, wget or any Python from 3.6 on fetches the uv that
# requirements.lock pins, and its hash is compared with the lock's; uv fetches the Python and
# compares its hash with the one that uv was built with. A bundle --with-python has both.
#
# shellcheck shell=sh
# shellcheck disable=SC2034,SC2154 # variables shared with bootstrap.sh

# Fetch uv for a Python that lacks only pip, or else also Python $wanted, into $pythons, and set
# base; exit where that is certain to be the end.
get_python() {
  [ "$python" != managed ] && [ "$installer" != pip ] || pipless=''
  case $python in
    '' | managed | 3.1[0-5]) ;;
    *) [ -n "$pipless" ] || return 1 ;;
  esac
  what="Python $wanted, managed by uv, into $pythons" short="managed Python $wanted"
  [ -z "$pipless" ] || what="uv, for $pipless without pip" short="$pipless with uv"
  case $looking in
    0)
      echo "python: no suitable one; would fetch $what"
      exit
      ;;
    11)
      rejected=$rejected${rejected:+$newline}"$short: stage env would fetch it"
      return
      ;;
  esac
  kept=$(ls -A "$pythons" 2>/dev/null)
  unfit=$(ls -d "$pythons/cpython-$wanted"[.-]* 2>/dev/null) # otherwise it would have been chosen
  echo "python: no suitable one; fetching $what"
  try_to get_uv
  if [ "$code" = 0 ] && [ -n "$pipless" ]; then
    rejected=''
    choose_python && return
    fail 1 "$pipless is no longer fit: $rejected"
  fi
  [ "$code" != 0 ] || try_to fetch_python
  patience=120 # the first start, perhaps from a network disk
  if [ -z "$pipless" ] && consider_managed "$wanted"; then return; fi # or another has installed it
  [ "$code" != 0 ] || [ -n "$kept" ] || rm -rf "$pythons/cpython-$wanted"[.-]*
  discard_pythons
  [ "$code" != 0 ] || trouble="what was fetched does not run" code=11
  if [ "$code" != 11 ] || [ "$python" = managed ]; then
    fail "$code" "no $short: $trouble; nothing was installed"
  fi
  rejected=$rejected${rejected:+$newline}"$short: $trouble"
}

try_to() { # FUNCTION, in a subshell: its exit code in $code, the reason in $trouble
  scratch=$project/.bootstrap/tmp-python-$$
  trap 'stop 129' HUP
  trap 'stop 130' INT
  trap 'stop 143' TERM
  trouble=$(prepare && "$1")
  code=$?
  trap - HUP INT TERM
  rm -rf "$scratch"
}

stop() { # EXIT CODE
  rm -rf "$scratch"
  discard_pythons
  fail "$1" "interrupted; the same command continues"
}

discard_pythons() { # unless another bootstrap has put one there, or is at work
  [ -z "$kept" ] || return 0
  for other in "$pythons"/cpython-*/bin/python3* "$project"/.bootstrap/tmp-python-*; do
    [ ! -e "$other" ] || return 0
  done
  rm -rf "$pythons"
}

# ---------------------------------------------------------------- in a subshell: text is the reason

give_up() { # CODE TEXT. As redact.py: all up to the last "@" of a word, or after "user:".
  printf '%s\n' "$2" | sed -e 's#://[^ ]*@#://***@#g' \
    -e "s#\(://\)[^] /@:[]*:[0-9]*[^] 0-9/@:.,;)'\"][^ ]*#\1***#g"
  exit "$1"
}

prepare() {
  mkdir -p "$scratch" 2>/dev/null || give_up 13 "cannot write $scratch"
  lock=$(sed -n '/^uv==/,/[^\\]$/p' "$project/requirements.lock")
  version=${lock#uv==} version=${version%%[!0-9.]*}
  hashes=$(printf '%s\n' "$lock" | sed -n 's/.*--hash=sha256:\([0-9a-f]*\).*/\1/p')
  uv=$project/.bootstrap/uv-$version/uv
  find_helper
  authority=${SSL_CERT_FILE:-${PIP_CERT:-$(pip_conf cert)}}
  proxy=${PIP_PROXY:-$(pip_conf proxy)}
  [ -z "$authority" ] || export SSL_CERT_FILE="$authority"
  [ -z "$proxy" ] || export https_proxy="${https_proxy:-$proxy}"
}

fetch_python() {
  mkdir -p "$pythons" 2>/dev/null || give_up 13 "cannot write $pythons"
  if [ -n "$bundle" ]; then
    mirror=''
    for archive in "$bundle"/python/*/cpython-*.tar.gz "$bundle"/python/*/cpython-*.tar.gz.001; do
      [ -e "$archive" ] || continue
      archive=${archive%.001}
      release=${archive%/*} release=$scratch/mirror/${release##*/}
      mkdir -p "$release"
      whole "$archive" >"$release/${archive##*/}" || give_up 12 "no space left in $release"
      mirror=file://$(encoded "$scratch/mirror")
    done
    [ -n "$mirror" ] || give_up 11 "$bundle has none: ./bootstrap.sh bundle OUT --with-python"
  fi
  export UV_CACHE_DIR="$scratch/cache" UV_PYTHON_DOWNLOADS=manual UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-60}" UV_NO_PROGRESS=1
  unset UV_PYTHON UV_NO_BINARY
  case $mirror in
    file://*) export UV_OFFLINE=1 ;;
    *) is_online || give_up 11 "the network is not used (--offline)" ;;
  esac
  [ -z "$mirror" ] || export UV_PYTHON_INSTALL_MIRROR="$mirror"
  "$uv" python install "$wanted" --install-dir "$pythons" --no-bin ${unfit:+--reinstall} \
    >"$scratch/log" 2>&1 && return
  reason=$(sed -n 's/^ *\(error\|cause\): *//; /./h; $ { x; p; }' "$scratch/log")
  where=${mirror:-its usual place}
  if grep -qi 'no space left\|quota' "$scratch/log"; then give_up 12 "no space left: $reason"; fi
  if grep -qi 'hash mismatch\|invalid tar file' "$scratch/log"; then
    give_up 15 "other bytes than uv $version knows came from $where: try another mirror"
  fi
  give_up 11 "uv $version had no success at $where: $reason"
}

# ---------------------------------------------------------------- uv

# The uv that the lock names, from the bundle, a folder of wheels or the package index.
get_uv() {
  [ ! -x "$uv" ] || return 0
  machine=$(uname -m) trouble="no package index is known: PIP_INDEX_URL=https://INDEX/simple"
  set -- "$bundle/wheels"
  set -f
  # shellcheck disable=SC2086 # folders and indexes, separated by spaces
  set -- "$@" ${PIP_FIND_LINKS-}
  set +f
  for folder; do
    for wheel in "$folder/uv-$version"-*.whl "$folder/uv-$version"-*.whl.001; do
      wheel=${wheel%.001}
      is_for_here "$wheel" && whole "$wheel" >"$scratch/uv.whl" && unpack_uv && return
    done
  done
  [ -z "$bundle" ] || give_up 11 "$bundle has no uv $version that requirements.lock names"
  is_online || give_up 11 "the network is not used (--offline), and uv $version is not here"
  set -f
  for index in $(indexes); do
    page=${index%/}/uv/
    fetch "$page" "$scratch/page" || continue
    trouble="$page names no uv $version for $machine: is that a package index?"
    # shellcheck disable=SC2020 # each of the two becomes a line end
    for link in $(tr '<>' '\n\n' <"$scratch/page" | sed -n 's/^a .*href="\([^"#]*\).*/\1/p'); do
      is_for_here "$link" || continue
      fetch "$(joined "$page" "$link")" "$scratch/uv.whl" && unpack_uv && return
    done
  done
  set +f
  give_up "${trouble_code:-11}" "uv $version could not be fetched: $trouble"
}

is_for_here() { # PATH OR URL OF A WHEEL
  case ${1##*/} in
    uv-"$version"-*-any.whl | uv-"$version"-*manylinux*_"$machine".whl) ;;
    uv-"$version"-*macosx*_"$machine".whl) ;;
    *) return 1 ;;
  esac
}

# Unpack $scratch/uv.whl if it is one that the lock names.
unpack_uv() {
  set +f
  case $newline$hashes$newline in
    *"$newline$(sha256 "$scratch/uv.whl")$newline"*) ;;
    *)
      trouble="a downloaded file is not the one that requirements.lock names" trouble_code=15
      return 1
      ;;
  esac
  member=uv-$version.data/scripts/uv new=$scratch/uv
  # gzip reads the first file of a zip archive, which thus has to begin with uv.
  unzip -p "$scratch/uv.whl" "$member" >"$new" 2>/dev/null \
    || run_helper "$unzip_code" "$scratch/uv.whl" "$member" >"$new" 2>/dev/null \
    || tail -c +"$(first_byte "$scratch/uv.whl" "$member")" "$scratch/uv.whl" | gzip -dc >"$new" 2>/dev/null
  chmod 755 "$new"
  trouble=$("$new" --version 2>&1) || { trouble="it does not run: $trouble" && return 1; }
  mkdir -p "${uv%/*}" && mv "$new" "$uv"
}

first_byte() { # FILE NAME: of this file's entry in the zip archive, counted from 1
  offset=$(LC_ALL=C grep -abo "$2" "$1" | head -n 1)
  echo $((${offset%%:*} - 29))
}

# Addresses in the order in which they are tried.
indexes() {
  {
    [ -n "${PIP_NO_INDEX-}${UV_NO_INDEX-}" ] || printf '%s\n' "${UV_DEFAULT_INDEX-}" \
      "${UV_INDEX_URL-}" "${PIP_INDEX_URL-}" "$(pip_conf index-url)" "${UV_INDEX-}" \
      "${UV_EXTRA_INDEX_URL-}" "${PIP_EXTRA_INDEX_URL-}" "$(pip_conf extra-index-url)"
    sed -n 's/^ *\(index-\)*url *= *"\([^"]*\)".*/\2/p' "${UV_CONFIG_FILE:-${XDG_CONFIG_HOME:-$HOME/.config}/uv/uv.toml}" \
      /etc/uv/uv.toml 2>/dev/null
    run_helper "$pip_code"
  } | tr ' ' '\n' | sed -n 's/^[A-Za-z0-9_-]*=\(http\)/\1/; /^https*:/p'
}

pip_conf() { # KEY: what the first of pip's files that names it says
  for file in "${PIP_CONFIG_FILE-}" "${XDG_CONFIG_HOME:-$HOME/.config}/pip/pip.conf" \
    "$HOME/.pip/pip.conf" /etc/pip.conf; do
    sed -n "s/^ *$1 *[=:] *//p" "$file" 2>/dev/null
  done | head -n 1
}

joined() { # PAGE LINK: the link's URL
  root=$(printf '%s\n' "$1" | sed 's#\(://[^/]*\).*#\1#')
  case $2 in
    http*://*) printf '%s\n' "$2" ;;
    /*) printf '%s\n' "$root$2" ;;
    *) printf '%s\n' "$1$2" ;;
  esac | sed -e 's/&amp;/\&/g' -e :a -e 's#/[^/][^/]*/\.\./#/#' -e ta
}

# ---------------------------------------------------------------- tools

fetch() { # URL FILE. Not as an argument: those are seen by all users.
  case $1 in
    *://*[/?#]*@*)
      trouble="$1 cannot be read; write / : @ # ? of a password as %2F %3A %40 %23 %3F"
      return 1
      ;;
  esac
  if command -v curl >/dev/null; then
    printf 'url = "%s"\n' "$1" | curl -gfsSL -K - --connect-timeout 20 --retry 2 --speed-limit 1000 \
      --speed-time 60 ${SSL_CERT_FILE:+--cacert "$SSL_CERT_FILE"} -o "$2"
  elif command -v wget >/dev/null; then
    printf '%s\n' "$1" | wget -nv -T 30 -t 3 ${SSL_CERT_FILE:+--ca-certificate="$SSL_CERT_FILE"} \
      -i - -O "$2"
  else
    printf '%s\n' "$1" | run_helper "$fetch_code" "$2"
  fi 2>"$scratch/error" && return
  trouble=$(sed -n '/./h; $ { x; p; }' "$scratch/error") trouble_code=11
  trouble="$1: ${trouble:-no curl, no wget and no Python 3.6 or newer}"
  return 1
}

# Some Python from 3.6 on, too old to be more than a tool.
find_helper() {
  helper=$(
    printf '%s\n' python3 python "$rejected" /usr/libexec/platform-python | while IFS= read -r line; do
      case $line in *"no answer"*) continue ;; esac
      "${line%%: *}" -I -c 'import ssl, sys; sys.exit(sys.version_info < (3, 6))' \
        </dev/null >/dev/null 2>&1 && printf '%s' "${line%%: *}" && break
    done
  )
}
run_helper() { # CODE ARGUMENTS...
  [ -n "$helper" ] && "$helper" -I -c "$@"
}
fetch_code='
import shutil, sys, urllib.request
with urllib.request.urlopen(sys.stdin.readline().strip(), timeout=60) as answer:
    with open(sys.argv[1], "wb") as file:
        shutil.copyfileobj(answer, file)
'
unzip_code='
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as archive, archive.open(sys.argv[2]) as file:
    shutil.copyfileobj(file, sys.stdout.buffer)
'
hash_code='
import hashlib, sys
print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())
'
# The default index of pip, also of the pip that ensurepip carries.
pip_code='
import glob, importlib, os, sys
try:
    import ensurepip
    for folder in (getattr(ensurepip, "_WHEEL_PKG_DIR", None), os.path.dirname(ensurepip.__file__)):
        sys.path += glob.glob(os.path.join(folder or "/nowhere", "**", "pip-*.whl"), recursive=True)
except ImportError:
    pass
for name in ("pip._internal.models.index", "pip.models.index"):
    try:
        print(importlib.import_module(name).PyPI.simple_url)
        break
    except (ImportError, AttributeError):
        pass
'

sha256() { # FILE
  { sha256sum "$1" || shasum -a 256 "$1" || openssl dgst -sha256 -r "$1" \
    || run_helper "$hash_code" "$1"; } 2>/dev/null | cut -c 1-64
}
whole() { # FILE, or its parts
  cat "$1" 2>/dev/null || cat "$1".[0-9][0-9][0-9] 2>/dev/null
}
encoded() { # PATH, for a URL
  printf '%s' "$1" | od -An -v -tx1 | tr -d ' \n' | sed 's/../%&/g; s#%2f#/#g'
}
is_online() {
  [ "${offline:-0}" != 1 ] && [ -z "${UV_OFFLINE-}" ]
}

# ---------------------------------------------------------------- what to do without one

no_python() {
  case "$(uname -s) $(uname -m)" in
    "Linux x86_64" | "Linux aarch64" | "Darwin arm64" | MINGW* | MSYS* | CYGWIN*) code=11 ;;
    *)
      code=10
      echo "  system    problem  $(uname -s) $(uname -m): PyTorch is made for Linux x86_64/aarch64" \
        "and macOS arm64"
      ;;
  esac
  {
    echo "error: no usable Python; Python 3.10 to 3.15 is needed"
    echo "  system: $(uname -s -m), $(getconf GNU_LIBC_VERSION 2>/dev/null || echo 'no glibc')"
    printf '%s\n' "${rejected:-none was found}" | awk '!seen[$0]++ { print "  " $0 }'
    echo "  next: one of"
    echo "    module load python, where the cluster has it; or --python PATH of one elsewhere"
    echo "    --python managed, with PIP_INDEX_URL=URL of a package index (for uv) and"
    echo "      --python-mirror URL of a mirror of python-build-standalone, where GitHub is closed"
    echo "    --bundle DIR, made where there is a network: ./bootstrap.sh bundle DIR --with-python"
    echo "    conda create --name vqa python=3.13 && conda activate vqa"
  } >&2
  exit "$code"
}
