# Shared by the scripts beside it (bash). Sets: root, cache, bin; gives: say, die, phase, packages.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${CONPAAS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/conpaas}
export CONPAAS_CACHE=$cache
# Outside the checkout, so that a second clone starts warm.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}
export PATH=$PATH:$HOME/.cargo/bin:$cache/tools/bin

say() { printf '\n== %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Runs a command under a title and says how long it took.
phase() {
  local title=$1 from=$SECONDS; shift
  say "$title"
  local status=0
  "$@" || status=$?
  printf '== %s: %s in %d s\n' "$title" "$([ $status = 0 ] && echo done || echo "FAILED ($status)")" $((SECONDS - from)) >&2
  return $status
}

# Cargo and rustc of at least the version the workspace states.
need_rust() {
  local wanted have cure
  wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$root/Cargo.toml")
  cure="Install one with rustup: 'apt-get install rustup && rustup default stable' where Debian has that package (from Debian 13 on), or rustup's own installer, then 'rustup update stable'."
  command -v cargo >/dev/null && command -v rustc >/dev/null ||
    die "no Rust toolchain found; ConPaaS needs Rust $wanted or newer. $cure"
  have=$(rustc --version | sed 's/^rustc \([0-9.]*\).*/\1/')
  [ "$(printf '%s\n%s\n' "$wanted" "$have" | sort -V | head -n1)" = "$wanted" ] ||
    die "Rust $have is too old; ConPaaS needs $wanted or newer. $cure"
}

# Where cargo puts the program: the build names its target, see .cargo/config.toml.
program() {
  printf '%s/%s/debug/conpaas\n' "$CARGO_TARGET_DIR" "$(rustc -vV | sed -n 's/^host: //p')"
}
