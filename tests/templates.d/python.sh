~/project/.venv/bin/pip --version
[ "$(~/project/.venv/bin/python -c 'print(6 * 7)')" = 42 ]
[ "$PIP_REQUIRE_VIRTUALENV" = true ]
