# Lists.
{ lib }:
let
  inherit (builtins)
    concatLists
    concatMap
    elem
    elemAt
    filter
    foldl'
    genList
    head
    isList
    length
    tail
    ;

  sublist =
    start: count: list:
    let
      size = length list;
      n =
        if start >= size then
          0
        else if start + count > size then
          size - start
        else
          count;
    in
    genList (i: elemAt list (start + i)) n;

  foldr =
    f: init: list:
    let
      n = length list;
      go = i: if i == n then init else f (elemAt list i) (go (i + 1));
    in
    go 0;

  imap0 = f: list: genList (i: f i (elemAt list i)) (length list);

  optional = condition: x: if condition then [ x ] else [ ];

  # Position of the first element that the predicate accepts. The state is the number of elements
  # refused so far, counted below zero, or the position once there is one: a plain number, so
  # that long lists cost no stack.
  findFirstIndex =
    p: fallback: list:
    let
      found = foldl' (
        i: x:
        if i >= 0 then
          i
        else if p x then
          -i - 1
        else
          i - 1
      ) (-1) list;
    in
    if found >= 0 then found else fallback;

  unique = foldl' (acc: x: if elem x acc then acc else acc ++ [ x ]) [ ];

  compareLists =
    cmp: a: b:
    let
      n = lib.min (length a) (length b);
      go =
        i:
        if i == n then
          lib.compare (length a) (length b)
        else
          let
            c = cmp (elemAt a i) (elemAt b i);
          in
          if c == 0 then go (i + 1) else c;
    in
    go 0;

  listDfs =
    stopOnCycles: before: list:
    let
      visit =
        current: visited: rest:
        let
          cycle = filter (x: before x current) visited;
          split = lib.partition (x: before x current) rest;
        in
        if stopOnCycles && cycle != [ ] then
          {
            cycle = current;
            loops = cycle;
            inherit visited rest;
          }
        else if split.right == [ ] then
          {
            minimal = current;
            inherit visited rest;
          }
        else
          visit (head split.right) ([ current ] ++ visited) (tail split.right ++ split.wrong);
    in
    visit (head list) [ ] (tail list);

  toposort =
    before: list:
    let
      found = listDfs true before list;
      rest = toposort before (found.visited ++ found.rest);
    in
    if length list < 2 then
      { result = list; }
    else if found ? cycle then
      {
        cycle = lib.reverseList ([ found.cycle ] ++ found.visited);
        inherit (found) loops;
      }
    else if rest ? cycle then
      rest
    else
      { result = [ found.minimal ] ++ rest.result; };
in
{
  inherit (builtins)
    head
    tail
    length
    isList
    elemAt
    concatLists
    filter
    elem
    genList
    map
    all
    any
    sort
    partition
    groupBy
    concatMap
    ;
  inherit
    foldl'
    sublist
    foldr
    imap0
    optional
    findFirstIndex
    unique
    compareLists
    listDfs
    toposort
    ;

  singleton = x: [ x ];
  forEach = list: f: map f list;
  fold = foldr;
  foldl =
    f: init: list:
    let
      go = i: if i < 0 then init else f (go (i - 1)) (elemAt list i);
    in
    go (length list - 1);
  imap1 = f: list: genList (i: f (i + 1) (elemAt list i)) (length list);
  ifilter0 =
    p: list: map (i: elemAt list i) (filter (i: p i (elemAt list i)) (genList (i: i) (length list)));
  flatten = x: if isList x then concatMap lib.flatten x else [ x ];
  remove = x: filter (y: y != x);
  findSingle =
    p: none: many: list:
    let
      found = filter p list;
      n = length found;
    in
    if n == 0 then
      none
    else if n == 1 then
      head found
    else
      many;
  findFirst =
    p: fallback: list:
    let
      i = findFirstIndex p null list;
    in
    if i == null then fallback else elemAt list i;
  count = p: foldl' (n: x: if p x then n + 1 else n) 0;
  optionals = condition: list: if condition then list else [ ];
  toList = x: if isList x then x else [ x ];
  range = first: last: if first > last then [ ] else genList (n: first + n) (last - first + 1);
  replicate = n: x: genList (_: x) n;
  groupBy' =
    f: init: key: list:
    builtins.mapAttrs (_: foldl' f init) (builtins.groupBy key list);
  zipListsWith =
    f: a: b:
    genList (i: f (elemAt a i) (elemAt b i)) (lib.min (length a) (length b));
  zipLists = lib.zipListsWith (fst: snd: { inherit fst snd; });
  reverseList =
    list:
    let
      last = length list - 1;
    in
    genList (i: elemAt list (last - i)) (length list);
  sortOn =
    key: list:
    map (x: elemAt x 1) (
      builtins.sort (a: b: head a < head b) (
        map (x: [
          (key x)
          x
        ]) list
      )
    );
  naturalSort =
    list:
    let
      # Runs of digits compare as numbers.
      pieces =
        s: map (x: if isList x then lib.toIntBase10 (head x) else x) (builtins.split "(0|[1-9][0-9]*)" s);
      less = a: b: compareLists lib.compare (head a) (head b) < 0;
    in
    map (x: elemAt x 1) (
      builtins.sort less (
        map (x: [
          (pieces x)
          x
        ]) list
      )
    );
  take = n: sublist 0 n;
  takeEnd = n: list: sublist (lib.max 0 (length list - n)) n list;
  drop = n: list: sublist n (length list) list;
  dropEnd = n: list: lib.take (lib.max 0 (length list - n)) list;
  hasPrefix = prefix: list: lib.take (length prefix) list == prefix;
  removePrefix =
    prefix: list:
    if lib.lists.hasPrefix prefix list then
      lib.drop (length prefix) list
    else
      throw "lists.removePrefix: the first list is no prefix of the second";
  commonPrefix =
    a: b:
    let
      n = lib.min (length a) (length b);
      differ = findFirstIndex (i: elemAt a i != elemAt b i) n (genList (i: i) n);
    in
    lib.take differ a;
  last = list: if list == [ ] then throw "last: the list is empty" else elemAt list (length list - 1);
  init =
    list: if list == [ ] then throw "init: the list is empty" else lib.take (length list - 1) list;
  crossLists = f: lists: foldl' (fs: args: concatMap (g: map g args) fs) [ f ] lists;
  uniqueStrings =
    list:
    let
      firsts = builtins.groupBy (x: x) list;
    in
    builtins.attrNames firsts;
  allUnique = list: length (unique list) == length list;
  intersectLists = keep: filter (x: elem x keep);
  subtractLists = drop: filter (x: !elem x drop);
  mutuallyExclusive = a: b: a == [ ] || !builtins.any (x: elem x a) b;
  concatAttrValues = set: concatLists (builtins.attrValues set);
  replaceElemAt =
    list: index: value:
    if index < 0 || index >= length list then
      throw "replaceElemAt: the list has no element ${toString index}, it has ${toString (length list)}"
    else
      genList (i: if i == index then value else elemAt list i) (length list);
}
