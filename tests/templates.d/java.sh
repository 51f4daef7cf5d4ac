cd "$(mktemp -d)"
echo 'public class Answer { public static void main(String[] a) { System.out.println(6 * 7); } }' > Answer.java
javac Answer.java
[ "$(java Answer)" = 42 ]
mvn -version
gradle --version
