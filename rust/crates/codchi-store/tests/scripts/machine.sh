# PID 1's stand-in: a root file system of its own, a process in it, and what a person would do there.
# RUN: the machine's runtime directory; NAME: the machine; DIST: the folder of Nix; CONF: its configuration;
# REMOTE: how the host reaches its store; ROOTS: where the machine's roots are; INBOX: the endpoint's inbox, if it has one.
set -euo pipefail
fail() { echo "FAILED: $*" >&2; exit 1; }
soon() { for _ in $(seq 100); do if "$@"; then return 0; fi; sleep 0.05; done; fail "not in time: $*"; }

R=$RUN/root; export NIX_CONF_DIR=$CONF NIX_REMOTE=$REMOTE HOME=$RUN/home
mkdir -p "$R" "$HOME"; mount -t tmpfs tmpfs "$R"
for d in usr bin lib lib64 proc dev; do
  if [ -L /$d ]; then cp -a /$d "$R/"; else mkdir "$R/$d"; mount --rbind /$d "$R/$d"; fi
done
mkdir -p "$R/nix/store" "$R/nix/var/nix/daemon-socket" "$R/home/u" "$R/tmp" "$R/etc" "$R$DIST" "$R$CONF"
mount --bind /nix/store "$R/nix/store"; mount -o remount,bind,ro "$R/nix/store"
mount --bind "$RUN/daemon" "$R/nix/var/nix/daemon-socket"
mount --bind "$DIST" "$R$DIST"; mount --bind "$CONF" "$R$CONF"
echo u:x:0:0::/home/u:/bin/sh > "$R/etc/passwd"
unshare --net chroot "$R" /bin/bash -c 'echo > /tmp/up; exec sleep 600' & L=$!
trap 'kill $L' EXIT
soon test -e "$R/tmp/up"
echo "{\"leader\": $L}" > "$RUN/new"; mv "$RUN/new" "$RUN/supervisor.json"

inside() { local p=$1; shift; chroot "$R" env -i HOME=/home/u NIX_REMOTE=daemon NIX_CONF_DIR="$CONF" "$DIST/bin/$p" "$@"; }
drv() { echo "derivation { name = \"$1\"; system = \"$SYSTEM\"; builder = \"/bin/sh\"; args = [ \"-c\" \"echo $NAME $1 > \$out\" ]; }"; }

# Whoever connects is untrusted, root of the machine too.
trusted=$(inside nix store info --json --store daemon)
case $trusted in *'"trusted":false'* | *'"trusted":0'*) ;; *) fail "trusted: $trusted" ;; esac

# A build with a fixed output sees the machine's network, and nothing of what the person's environment holds.
if [ -n "${PORT:-}" ]; then
  expected=$(echo "$NAME, network no, told <>" | sha256sum | cut -d' ' -f1)
  cat > "$R/home/u/fixed.nix" <<NIX
derivation {
  name = "fixed"; system = "$SYSTEM"; builder = "/bin/sh"; impureEnvVars = [ "SECRET" ];
  outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = "$expected";
  args = [ "-c" "n=no; if (: < /dev/tcp/127.0.0.1/$PORT) 2>/dev/null; then n=yes; fi; echo \"$NAME, network \$n, told <\$SECRET>\" > \$out" ];
}
NIX
  (: < "/dev/tcp/127.0.0.1/$PORT") || fail "nobody listens on the host"
  [ -n "$SECRET" ] || fail "there is no secret to tell"
  inside nix build -f /home/u/fixed.nix --no-link
fi

# A result link made inside holds against a collection on the host.
drv one > "$R/home/u/one.nix"
one=$(inside nix build -f /home/u/one.nix --out-link /home/u/result --print-out-paths)
held() { [ "$(readlink "$ROOTS"/* 2>/dev/null)" = "$1" ]; }
soon held "$one"
[ -z "$INBOX" ] || [ -z "$(ls -A "$INBOX")" ] || fail "the inbox is not emptied"
"$DIST/bin/nix-store" --gc > /dev/null 2>&1
[ -e "$one" ] || fail "the host's collection took what the machine holds"

# A collection from inside keeps what the host holds, and takes what nobody does.
drv two > "$RUN/two.nix"; drv three > "$RUN/three.nix"
two=$("$DIST/bin/nix-build" "$RUN/two.nix" --out-link "$RUN/two")
three=$("$DIST/bin/nix-build" "$RUN/three.nix" --no-out-link)
inside nix-store --gc > /dev/null 2>&1
[ -e "$two" ] || fail "the machine's collection took what the host holds"
[ -e "$one" ] || fail "the machine's collection took what it holds itself"
[ ! -e "$three" ] || fail "garbage stayed"
[ -L "$RUN/two" ] || fail "the host's link is gone"
"$DIST/bin/nix-store" --gc > /dev/null 2>&1
[ -e "$one" ] || fail "the machine's root was lost by its own collection"
[ -e "$two" ] || fail "the host's root was lost by the machine's collection"

# A link is resolved in the machine: what leads up and out stays inside, what is no store path is none.
ln -s / "$R/home/u/up"
inside nix build -f /home/u/one.nix --out-link /home/u/up/home/u/again
twice() { [ "$(ls "$ROOTS" | wc -l)" = 2 ]; }
soon twice

# The link moves on, and so does the root.
drv four > "$R/home/u/four.nix"
rm "$R/home/u/again"
soon held "$one"
four=$(inside nix build -f /home/u/four.nix --out-link /home/u/result --print-out-paths)
soon held "$four"

# The link is gone, and so is the root.
rm "$R/home/u/result"
gone() { [ -z "$(ls -A "$ROOTS")" ]; }
soon gone
"$DIST/bin/nix-store" --gc > /dev/null 2>&1
[ ! -e "$one" ] && [ ! -e "$four" ] || fail "what nobody holds stayed"
# Nothing of the machine's paths is left where the host looks for roots.
! ls -l /nix/var/nix/gcroots/auto | grep -q /home/u || fail "a path of the machine is a root of the host"
echo passed
