# accept: port:8080
curl -sf http://localhost/ | grep -q 'It works'
[ "$(psql -Atc 'select current_user')" = "$(id -un)" ]
[ "$(redis-cli ping)" = PONG ]
node -e 'process.exit(0)'
