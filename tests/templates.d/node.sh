# accept: port:3000
[ "$(node -p '6 * 7')" = 42 ]
[ "$(npm config get prefix)" = "$HOME/.local" ]
