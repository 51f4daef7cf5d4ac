[ "$GREETING" = "Hello from your machine" ]
[ "$(hello --greeting=hi)" = hi ]
[ "$(echo '{"a":1}' | jq .a)" = 1 ]
systemctl is-active greet
grep -q home ~/hello/README
