# Programs whose module is their package, with what lets ordinary users run them.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkEnableOption mkOption types;
  cfg = config.programs;

  # Programs without further settings, by the package's name.
  plain = {
    iftop = "iftop, a bandwidth monitor";
    iotop = "iotop, a monitor of input and output";
    mosh = "mosh";
    mtr = "mtr, a network diagnostic tool";
    traceroute = "traceroute";
    tcpdump = "tcpdump";
    zoxide = "zoxide, a smarter cd";
    fzf = "fzf";
    bat = "bat, a cat(1) clone with wings";
    lazygit = "lazygit";
    wireshark = "Wireshark";
  };
  # Those that need capabilities an ordinary user lacks.
  capabilities = {
    iftop = "cap_net_raw+p";
    mtr = "cap_net_raw+p";
    tcpdump = "cap_net_raw,cap_net_admin+eip";
    traceroute = "cap_net_raw+p";
  };
  # Those whose package may be chosen.
  chosen = {
    mtr = pkgs.mtr-tiny;
    inherit (pkgs)
      bat
      iotop
      lazygit
      mosh
      wireshark
      ;
  };
  packageOf = name: cfg.${name}.package or pkgs.${name};
  program = {
    bat = "batcat";
  };
in
{
  options.programs =
    lib.mapAttrs (
      name: text:
      lib.optionalAttrs (name != "fzf") { enable = mkEnableOption text; }
      // lib.optionalAttrs (chosen ? ${name}) {
        package = mkOption {
          type = types.package;
          default = chosen.${name};
          defaultText = lib.literalExpression "pkgs.${name}";
          description = "The ${name} package to use.";
        };
      }
    ) plain
    // {
      fzf = {
        keybindings = mkEnableOption "fzf's keys";
        fuzzyCompletion = mkEnableOption "fuzzy completion with fzf";
      };
      zoxide = {
        enable = mkEnableOption "zoxide, a smarter cd";
        package = lib.mkPackageOption pkgs "zoxide" { };
        enableBashIntegration = mkEnableOption "the hook of bash" // {
          default = true;
        };
        enableZshIntegration = mkEnableOption "the hook of zsh" // {
          default = true;
        };
        enableFishIntegration = mkEnableOption "the hook of fish" // {
          default = true;
        };
        flags = mkOption {
          type = types.listOf types.str;
          default = [ ];
          description = "Arguments of `zoxide init`.";
        };
      };
    };

  config = lib.mkMerge (
    lib.mapAttrsToList (
      name: _:
      lib.mkIf (cfg.${name}.enable or false) {
        environment.systemPackages = [ (packageOf name) ];
        security.wrappers = lib.optionalAttrs (capabilities ? ${name}) {
          ${name} = {
            owner = "root";
            group = "root";
            capabilities = capabilities.${name};
            source = "${packageOf name}/bin/${program.${name} or name}";
          };
        };
      }
    ) plain
    ++ [
      (lib.mkIf (cfg.fzf.keybindings || cfg.fzf.fuzzyCompletion) {
        environment.systemPackages = [ pkgs.fzf ];
        programs.bash.interactiveShellInit =
          lib.optionalString cfg.fzf.fuzzyCompletion "if [ -r /usr/share/bash-completion/completions/fzf ]; then . /usr/share/bash-completion/completions/fzf; fi\n"
          + lib.optionalString cfg.fzf.keybindings "if [ -r /usr/share/doc/fzf/examples/key-bindings.bash ]; then . /usr/share/doc/fzf/examples/key-bindings.bash; elif fzf --bash >/dev/null 2>&1; then eval \"$(fzf --bash)\"; fi\n";
        programs.zsh.interactiveShellInit = lib.optionalString cfg.fzf.keybindings "if [ -r /usr/share/doc/fzf/examples/key-bindings.zsh ]; then . /usr/share/doc/fzf/examples/key-bindings.zsh; elif fzf --zsh >/dev/null 2>&1; then eval \"$(fzf --zsh)\"; fi\n";
      })
      (lib.mkIf cfg.zoxide.enable (
        let
          init = shell: "zoxide init ${shell} ${lib.escapeShellArgs cfg.zoxide.flags}";
        in
        {
          programs.bash.interactiveShellInit = lib.mkIf cfg.zoxide.enableBashIntegration (
            lib.mkAfter ''eval "$(${init "bash"})"''
          );
          programs.zsh.interactiveShellInit = lib.mkIf cfg.zoxide.enableZshIntegration (
            lib.mkAfter ''eval "$(${init "zsh"})"''
          );
          programs.fish.interactiveShellInit = lib.mkIf cfg.zoxide.enableFishIntegration (
            lib.mkAfter "${init "fish"} | source"
          );
        }
      ))
    ]
  );
}
