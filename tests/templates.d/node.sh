# accept: port:3000
# fetch: http://127.0.0.1:3000/ from the machine
[ "$(node -p '6 * 7')" = 42 ]
[ "$(npm config get prefix)" = "$HOME/.local" ]
node -e 'require("http").createServer((_, r) => r.end("from the machine")).listen(3000, "127.0.0.1")' >/dev/null 2>&1 &
for _ in $(seq 50); do ! [ "$(node -e 'fetch("http://127.0.0.1:3000/").then(r => r.text()).then(console.log)' 2>/dev/null)" = "from the machine" ] || exit 0; done
exit 1
