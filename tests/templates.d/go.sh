cd "$(mktemp -d)"
printf 'package main\n\nimport "fmt"\n\nfunc main() { fmt.Println(6 * 7) }\n' > answer.go
[ "$(go run answer.go)" = 42 ]
gopls version
