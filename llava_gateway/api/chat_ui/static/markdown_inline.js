// Markdown within a paragraph: emphasis, code, links. The result is a tree of strings and nodes {tag, attributes, children}. All tags and
// names of attributes come from this file, never from the text. The time is linear in the length of the text.

const MAX_OPEN = 16; // open marks at once; further marks are text
const MAX_ADDRESS = 2048;
const PLAIN = /[^\\`*_~[\]!<h]+/y;
const MARKS = { "*": /\*+/y, _: /_+/y, "~": /~+/y };
const TARGET = new RegExp(`\\(\\s{0,8}<?((?:[^\\s()<>]|\\([^\\s()<>]{0,${MAX_ADDRESS}}\\)){1,${MAX_ADDRESS}})>?(?:\\s{1,8}"[^"]{0,500}")?\\s{0,8}\\)`, "y");
const AUTOLINK = new RegExp(`<([a-z]{4,6}:[^\\s<>]{1,${MAX_ADDRESS}})>`, "iy");
const BARE_LINK = new RegExp(`https?://[^\\s<>"\`|]{1,${MAX_ADDRESS}}`, "y");
const EMPHASIS = { 1: "em", 2: "strong" };

export const node = (tag, children = [], attributes = {}) => ({ tag, attributes, children });

// Returns the nodes of a text.
export function inline(text) {
  return new Inline(text).parse();
}

// Returns the address if a link may lead there, or null.
export function safeAddress(text) {
  const url = text.length <= MAX_ADDRESS && URL.canParse(text) ? new URL(text) : null;
  return url && ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
}

const link = (href, children) => node("a", children, { href, target: "_blank", rel: "noopener noreferrer" });

// Appends text or a node. Neighbouring texts are joined.
function append(children, child) {
  const last = children.length - 1;
  if (typeof child === "string" && typeof children[last] === "string") children[last] += child;
  else if (child !== "") children.push(child);
}

// Returns the nodes with the content of links in place of the links: a link has no links within.
const withoutLinks = (children) =>
  children.flatMap((child) => {
    if (typeof child === "string") return [child];
    const inner = withoutLinks(child.children);
    return child.tag === "a" ? inner : [{ ...child, children: inner }];
  });

class Inline {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.open = [{ mark: "", children: [] }]; // the marks that may be closed later, with the nodes after them
    this.ticks = null; // the places of the backticks, by the length of their run
  }

  parse() {
    while (this.at < this.text.length) {
      const plain = this.#match(PLAIN);
      if (plain) this.#add(plain[0]);
      else this.#special(this.text[this.at]);
    }
    while (this.open.length > 1) this.#abandon();
    return this.open[0].children;
  }

  #match(pattern) {
    pattern.lastIndex = this.at;
    const found = pattern.exec(this.text);
    if (found) this.at += found[0].length;
    return found;
  }

  #add(child) {
    append(this.open.at(-1).children, child);
  }

  #special(character) {
    if (character === "\\") this.#escape();
    else if (character === "`") this.#code();
    else if (character in MARKS) this.#marks(character);
    else if (character === "[") this.#push("[", 1);
    else if (character === "!" && this.text[this.at + 1] === "[") this.#push("![", 2);
    else if (character === "]") this.#closeBracket();
    else if (!this.#autolink(character)) {
      this.#add(character);
      this.at += 1;
    }
  }

  #push(mark, length) {
    this.at += length;
    if (this.open.length > MAX_OPEN) this.#add(mark);
    else this.open.push({ mark, children: [] });
  }

  // Turns the last open mark into text.
  #abandon() {
    const { mark, children } = this.open.pop();
    this.#add(mark);
    for (const child of children) this.#add(child);
  }

  #escape() {
    const next = this.text[this.at + 1] ?? "";
    const escaped = /^[!-/:-@[-`{-~]$/.test(next);
    this.#add(escaped ? next : "\\");
    this.at += escaped ? 2 : 1;
  }

  #code() {
    const start = this.at;
    const length = this.#match(/`+/y)[0].length;
    this.ticks ??= Map.groupBy(this.text.matchAll(/`+/g), (run) => run[0].length);
    const runs = this.ticks.get(length) ?? [];
    runs.next ??= 0;
    while (runs[runs.next]?.index <= start) runs.next += 1;
    const end = runs[runs.next]?.index;
    if (end === undefined) return this.#add("`".repeat(length));
    const content = this.text.slice(this.at, end);
    this.#add(node("code", [/^ .*[^ ].* $/s.test(content) ? content.slice(1, -1) : content]));
    this.at = end + length;
  }

  #marks(character) {
    const before = this.text[this.at - 1] ?? " ";
    let count = this.#match(MARKS[character])[0].length;
    const after = this.text[this.at] ?? " ";
    const isInWord = character === "_" && /[\p{L}\p{N}]/u.test(before) && /[\p{L}\p{N}]/u.test(after);
    if (character === "~" ? count !== 2 : count > 3 || isInWord) return this.#add(character.repeat(count));
    if (/\S/.test(before)) {
      for (let size = this.#closable(character, count); size && count; size = this.#closable(character, count)) {
        this.#close(character.repeat(size), character === "~" ? "del" : EMPHASIS[size]);
        count -= size;
      }
    }
    for (; count; count -= Math.min(count, 2)) {
      const mark = character.repeat(Math.min(count, 2));
      if (/\S/.test(after)) this.#push(mark, 0);
      else this.#add(mark);
    }
  }

  // Returns the length of the open mark that `count` characters close, or 0.
  #closable(character, count) {
    const isOpen = (size) => this.open.some(({ mark }) => mark === character.repeat(size));
    if (count < 3 && isOpen(count)) return count;
    return this.open.findLast(({ mark }) => mark[0] === character && mark.length <= count)?.mark.length ?? 0;
  }

  // Closes the last open mark of this kind: its content becomes a node.
  #close(mark, tag) {
    while (this.open.at(-1).mark !== mark) this.#abandon();
    const { children } = this.open.pop();
    if (children.length) this.#add(node(tag, children));
    else this.#add(mark + mark);
  }

  // Closes a link. An image is shown as a link: the page loads nothing from other servers.
  #closeBracket() {
    this.at += 1;
    if (!this.open.some(({ mark }) => mark.endsWith("["))) return this.#add("]");
    while (!this.open.at(-1).mark.endsWith("[")) this.#abandon();
    const start = this.at;
    const target = this.#match(TARGET);
    const href = target && safeAddress(target[1]);
    if (href) {
      const children = withoutLinks(this.open.pop().children);
      return this.#add(link(href, children.length ? children : [target[1]]));
    }
    this.at = start;
    this.#abandon();
    this.#add("]");
  }

  // Adds the link that starts here, and returns whether there is one.
  #autolink(character) {
    if (character === "h" && /[\p{L}\p{N}_]/u.test(this.text[this.at - 1] ?? " ")) return false;
    const start = this.at;
    const found = character === "<" ? this.#match(AUTOLINK)?.[1] : character === "h" ? this.#match(BARE_LINK)?.[0] : null;
    if (!found) return false;
    const shown = character === "<" ? found : withoutPunctuation(found);
    const href = safeAddress(shown);
    this.at = href === null ? start : character === "<" ? this.at : start + shown.length;
    if (href !== null) this.#add(link(href, [shown]));
    return href !== null;
  }
}

// Returns an address without the punctuation of the sentence around it. A closing bracket belongs to the address if it is opened there.
function withoutPunctuation(address) {
  const count = (character) => address.split(character).length - 1;
  let surplus = count(")") - count("(");
  let end = address.length;
  while (/[.,:;!?'*_~\])]/.test(address[end - 1]) && (address[end - 1] !== ")" || surplus-- > 0)) end -= 1;
  return address.slice(0, end);
}
