# Shared by the scripts beside it (bash). Sets: root, cache; gives: say, die, phase, need_rust,
# program, tools.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${CONPAAS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/conpaas}
export CONPAAS_CACHE=$cache
export PATH=$PATH:$HOME/.cargo/bin

# The first 16 digits of the hash of standard input.
short_hash() { sha256sum | cut -c1-16; }

# Outside the checkout, so that a second clone starts warm; apart for other dependencies, another
# toolchain or other flags, so that two checkouts never rebuild each other's.
if [ -z "${CARGO_TARGET_DIR:-}" ] && command -v rustc >/dev/null; then
  CARGO_TARGET_DIR=$cache/target/$({
    rustc -vV
    printf '%s\n' "${RUSTFLAGS:-}"
    cat "$root/Cargo.lock" "$root/.cargo/config.toml"
    sed -n '/^\[profile/,$p' "$root/Cargo.toml"
  } | short_hash)
fi
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target/none}

# What `make lint` needs beyond the toolchain, in exactly this version; kept by version and toolchain.
cargo_deny=0.20.2
tools() { printf '%s/tools/%s\n' "$cache" "$({ printf '%s\n' "$cargo_deny"; rustc -vV; } | short_hash)"; }

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

# The command that brings a toolchain of at least version $1, by what this system's packages have.
rust_cure() {
  local package version
  candidate() { apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: \([0-9][0-9.]*\).*/\1/p'; }
  enough() { [ -n "$1" ] && [ "$(printf '%s\n%s\n' "$wanted" "$1" | sort -V | head -n1)" = "$wanted" ]; }
  if command -v rustup >/dev/null; then
    printf 'Type: rustup update stable && rustup default stable'
    return
  fi
  # Debian 12 keeps a recent compiler for its browsers under a name of its own.
  for package in rustc rustc-web; do
    version=$(candidate $package)
    if enough "$version"; then
      if [ $package = rustc ]; then printf 'Type, as root: apt-get install cargo rustc rustfmt rust-clippy'
      else printf 'Type, as root: apt-get install cargo-web rustc-web rustfmt-web rust-web-clippy'; fi
      return
    fi
  done
  if [ -n "$(candidate rustup)" ]; then
    printf 'Type: apt-get install rustup (as root), then: rustup default stable'
  elif [ -z "$(candidate rustc)" ]; then
    printf 'Type, as root: apt-get update, and try again; the next step is said then'
  else
    printf "Debian's own packages are older here (rustc %s). Enable its security archive (apt-get update, then: apt-get install cargo-web rustc-web), or run rustup's installer" "$(candidate rustc)"
  fi
}

# Cargo and rustc of at least the version the workspace states.
need_rust() {
  local wanted have cure
  wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$root/Cargo.toml")
  cure=$(rust_cure "$wanted")
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
