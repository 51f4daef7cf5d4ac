{ pkgs, ... }:
{
  environment.systemPackages = [
    pkgs.git
    pkgs.gradle
    pkgs.jdk
    pkgs.maven
  ];
}
