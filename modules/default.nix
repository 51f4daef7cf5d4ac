# Everything Codchi adds to NixOS. Importing it changes nothing until `codchi.enable` is set.
{
  imports = [
    ./enable.nix
    ./build.nix
    ./driver.nix
    ./isolation.nix
    ./user.nix
    ./nix.nix
    ./container.nix
    ./agent.nix
    ./session.nix
    ./init-script.nix
    ./secrets.nix
    ./host-secrets.nix
    ./capabilities.nix
    ./desktop.nix
    ./display.nix
    ./sound.nix
    ./gpu.nix
    ./usb.nix
    ./kvm.nix
    ./mounts.nix
    ./ports.nix
    ./resources.nix
    ./vm.nix
  ];
}
