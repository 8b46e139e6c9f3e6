// Shows Markdown as DOM nodes while it grows. Text becomes text nodes, never HTML. Only the last blocks are parsed again, and nodes that
// have not changed stay: a selection, a focus and a scroll position survive.

import { applyTexts } from "./language.js";
import { blocks, codeBlock } from "./markdown_blocks.js";

const FAST = 16; // milliseconds; a slower update is followed by a pause, which grows with the update
const PAUSE = 5; // times the update's time beyond FAST

export class MarkdownView {
  #element;
  #isCode;
  #onUpdate;
  #rest = ""; // the text from the first block that may change
  #stable = 0; // the number of blocks before it, which stay
  #level = 2; // the level of the last heading in these blocks
  #shown = []; // the trees of the blocks after them
  #timer = 0;
  #earliest = 0; // the time of the next update

  // `isCode`: the whole text is code, such as JSON. `onUpdate` is called after each update of the page.
  constructor(element, isCode, onUpdate) {
    this.#element = element;
    this.#isCode = isCode;
    this.#onUpdate = onUpdate;
  }

  // Adds text. The page shows the first text at once. It shows other text in its next frame, or later if updates have become slow.
  add(text) {
    this.#rest += text;
    if (!this.#earliest) return this.finish();
    this.#timer ||= setTimeout(() => requestAnimationFrame(() => this.#timer && this.finish()), this.#earliest - performance.now());
  }

  // Shows all text now.
  finish() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    const started = performance.now();
    this.#update(this.#isCode ? [{ node: codeBlock(this.#rest, "json"), start: 0 }] : blocks(this.#rest));
    const now = performance.now();
    this.#earliest = now + Math.max(0, now - started - FAST) * PAUSE;
    this.#onUpdate();
  }

  // The next line may join the last two blocks, but no block before them.
  #update(found) {
    let level = this.#level;
    const trees = found.map(({ node }) => {
      const tree = withLevel(node, level);
      level = levelOf(tree) ?? level;
      return tree;
    });
    update(this.#element, this.#stable, this.#shown, trees);
    const settled = Math.max(0, found.length - 2);
    for (const tree of trees.slice(0, settled)) this.#level = levelOf(tree) ?? this.#level;
    this.#stable += settled;
    this.#shown = trees.slice(settled);
    this.#rest = this.#rest.slice(found[settled]?.start ?? 0);
  }
}

const levelOf = ({ tag }) => (/^h[1-6]$/.test(tag) ? Number(tag[1]) : null);

// Returns a heading at most one level below the heading before it, as screen readers expect.
const withLevel = (tree, level) => (levelOf(tree) > level + 1 ? { ...tree, tag: `h${level + 1}` } : tree);

// Changes the children of an element, from the index `first`, from the trees `old` to the trees `fresh`.
function update(element, first, old, fresh) {
  let child = element.childNodes[first] ?? null;
  fresh.forEach((tree, index) => {
    const before = old[index];
    if (before === undefined) return element.append(create(tree));
    const next = child.nextSibling;
    if (typeof tree === "string" && typeof before === "string") setText(child, before, tree);
    else if (isSame(before, tree)) update(child, 0, before.children, tree.children);
    else child.replaceWith(create(tree));
    child = next;
  });
  for (let count = old.length - fresh.length; count > 0; count -= 1) element.lastChild.remove();
}

function setText(node, before, text) {
  if (text === before) return;
  if (text.startsWith(before)) node.appendData(text.slice(before.length));
  else node.data = text;
}

const isSame = (before, tree) => before.tag === tree.tag && JSON.stringify(before.attributes) === JSON.stringify(tree.attributes);

function create(tree) {
  if (typeof tree === "string") return document.createTextNode(tree);
  const element = document.createElement(tree.tag);
  for (const [name, value] of Object.entries(tree.attributes)) element.setAttribute(name, value);
  applyTexts(element);
  element.append(...tree.children.map(create));
  return element;
}
