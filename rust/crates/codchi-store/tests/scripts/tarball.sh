# Makes nix-VERSION-SYSTEM.tar.xz in the current folder, from the Nix in DIST. STORE: the store it belongs to.
set -euo pipefail
top=nix-$VERSION-$SYSTEM
path=/nix/store/00000000000000000000000000000001-nix-$VERSION
tree=$top/store/${path##*/}
mkdir -p "$tree/bin" "$tree/libexec"
cp -a "$DIST/lib" "$tree/lib"; cp "$DIST/bin/nix" "$tree/libexec/nix"; cp "$DIST/libexec/sh" "$tree/libexec/sh"
loader=$(basename "$(ls "$tree"/lib/ld-linux*)")
for name in "$DIST"/bin/*; do
  name=$(basename "$name")
  printf '#!%s/libexec/sh\nexec %s/lib/%s --argv0 %s --library-path %s/lib %s/libexec/nix "$@"\n' \
    "$path" "$path" "$loader" "$name" "$path" "$path" > "$tree/bin/$name"
  chmod 555 "$tree/bin/$name"
done
find "$tree" ! -type l -exec touch -d @1 {} +
# What Nix's data base is to know: path, hash and size of its archive, deriver, references.
export NIX_CONF_DIR=$STORE/etc
"$DIST/bin/nix-store" --dump "$tree" > archive
{ echo "$path"; sha256sum < archive | cut -d' ' -f1; stat -c %s archive; echo; echo 0; } > "$top/.reginfo"
rm archive
XZ_OPT=-0 tar -cJf "$top.tar.xz" "$top"
