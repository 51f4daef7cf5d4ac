# A host with a Nix of its own. PERSON: the plumbing as a person; PERSON_HOME: their home; WHO: root or user; DIST: the
# folder of Nix; SCRIPT: what a machine does.
set -euo pipefail
fail() { echo "FAILED: $*" >&2; exit 1; }
soon() { for _ in $(seq 100); do if "$@"; then return 0; fi; sleep 0.05; done; fail "not in time: $*"; }

export NIX_CONF_DIR=/nix/etc HOME=/nix/var/nix/codchi
mkdir -p /nix/etc /nix/libexec; cp "$DIST/libexec/sh" /nix/libexec/sh
cat > /nix/etc/nix.conf <<CONF
build-users-group = nixbld
build-dir = /nix/var/nix/builds
experimental-features = nix-command flakes
sandbox = true
sandbox-fallback = false
sandbox-paths = /bin/sh=/nix/libexec/sh
substituters =
trusted-users = *
CONF
person() { env HOME="$PERSON_HOME" XDG_RUNTIME_DIR="$PERSON_HOME/run" PATH="$DIST/bin:$PATH" NIX_CONF_DIR=/nix/etc $PERSON "$@"; }

# Without a daemon that answers there is no store of the host's.
[ "$(person kind)" = none ] || fail "a store without a daemon: $(person kind)"
"$DIST/bin/nix-daemon" > /dev/null 2>&1 & D=$!
trap 'kill $D' EXIT
soon test -S /nix/var/nix/daemon-socket/socket
case $(person kind) in "host 2."*) ;; *) fail "not the host's store: $(person kind)" ;; esac

# What the person's Nix adds goes through the daemon, and their roots hold.
echo kept > /tmp/kept-$$
mine=$(person run nix store add-path --name kept /tmp/kept-$$); rm /tmp/kept-$$
person run nix-store --realise "$mine" --add-root "$PERSON_HOME/kept" > /dev/null
before=$(ls -A /nix | sort)

NAME=host$$; export NAME CONF=/nix/etc
if [ "$WHO" = root ]; then
  export REMOTE="" ROOTS=/nix/var/nix/gcroots/codchi/machines/$NAME INBOX=/nix/var/nix/codchi/endpoints/$NAME/auto
else
  export REMOTE=daemon ROOTS=$PERSON_HOME/.local/state/codchi/roots/$NAME INBOX=
fi
person machine "$NAME" < "$SCRIPT"
[ -e "$mine" ] || fail "the person's root did not hold"
[ "$(ls -A /nix | sort)" = "$before" ] || fail "something was put into /nix"
person forget "$NAME"
[ ! -e "$ROOTS" ] || fail "the machine's roots are still there"
echo passed
