# accept: port:8080
# fetch: http://127.0.0.1:8080/ It works
curl -sf http://localhost/ | grep -q 'It works'
[ "$(psql -Atc 'select current_user')" = "$(id -un)" ]
[ "$(redis-cli ping)" = PONG ]
node -e 'process.exit(0)'
