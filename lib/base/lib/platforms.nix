# Lists of systems for `meta.platforms`.
{ lib }: lib.systems.doubles
