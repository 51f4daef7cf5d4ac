# Editors, and which of them `EDITOR` names.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkEnableOption mkOption types;
  inherit (import ../options.nix { inherit lib; }) yes;
  cfg = config.programs;
  editor = name: lib.mkOverride 900 name;
  # A second name of a program.
  alias = name: program: pkgs.writeShellScriptBin name ''exec ${program} "$@"'';
in
{
  options.programs = {
    vim = {
      enable = mkEnableOption "Vi IMproved, an advanced text editor";
      defaultEditor = mkEnableOption "vim as the default editor";
      package = lib.mkPackageOption pkgs "vim" { };
    };
    neovim = {
      enable = mkEnableOption "Neovim";
      defaultEditor = yes false "Whether `nvim` is the default editor.";
      viAlias = yes false "Whether `vi` is neovim.";
      vimAlias = yes false "Whether `vim` is neovim.";
      withRuby = yes false "Accepted; providers come with their own packages.";
      withPython3 = yes false "Accepted; providers come with their own packages.";
      withNodeJs = yes false "Accepted; providers come with their own packages.";
      configure = mkOption {
        type = types.attrs;
        default = { };
        example = {
          customRC = "set number";
        };
        description = "`customRC` and `customLuaRC` are read by every neovim. Plugins of nixpkgs are not there.";
      };
      package = lib.mkPackageOption pkgs "neovim" { };
      finalPackage = mkOption {
        type = types.package;
        readOnly = true;
        default = cfg.neovim.package;
        defaultText = lib.literalExpression "config.programs.neovim.package";
        description = "The package that is used.";
      };
    };
    nano = {
      enable = yes true "Whether nano, a small user-friendly console text editor, is there.";
      package = lib.mkPackageOption pkgs "nano" { };
      nanorc = mkOption {
        type = types.lines;
        default = "";
        description = "Lines of the nanorc of all users.";
      };
      syntaxHighlight = yes true "Whether nano colours what it knows.";
    };
  };

  config = lib.mkMerge [
    (lib.mkIf cfg.vim.enable {
      environment.systemPackages = [ cfg.vim.package ];
    })
    (lib.mkIf (cfg.vim.enable && cfg.vim.defaultEditor) {
      environment.variables.EDITOR = editor "vim";
    })
    (lib.mkIf cfg.neovim.enable {
      assertions = [
        {
          assertion = cfg.neovim.configure.packages or { } == { };
          message = "the debian base has no plugins of nixpkgs for `programs.neovim.configure.packages'";
        }
      ];
      environment.systemPackages = [
        cfg.neovim.package
      ]
      ++ lib.optional cfg.neovim.viAlias (alias "vi" "/usr/bin/nvim")
      ++ lib.optional cfg.neovim.vimAlias (alias "vim" "/usr/bin/nvim");
      environment.variables.EDITOR = lib.mkIf cfg.neovim.defaultEditor (editor "nvim");
      environment.etc."xdg/nvim/sysinit.vim" = lib.mkIf (cfg.neovim.configure != { }) {
        text = ''
          ${cfg.neovim.configure.customRC or ""}
          lua << EOF
          ${cfg.neovim.configure.customLuaRC or ""}
          EOF
        '';
      };
    })
    (lib.mkIf cfg.nano.enable {
      environment.systemPackages = [ cfg.nano.package ];
      environment.etc.nanorc.text = ''
        ${lib.optionalString cfg.nano.syntaxHighlight "include \"/usr/share/nano/*.nanorc\""}
        ${cfg.nano.nanorc}
      '';
    })
  ];
}
