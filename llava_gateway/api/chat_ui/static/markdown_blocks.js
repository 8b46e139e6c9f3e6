// The blocks of Markdown: paragraphs, headings, lists, quotes, tables, code. They are those of CommonMark and GitHub, as models write them:
// nested lists may be indented by two spaces, HTML is text, and a line of dashes is always a rule. The time is linear in the text.

import { inline, node } from "./markdown_inline.js";

const MAX_DEPTH = 8; // lists and quotes within each other; deeper ones are text
const MAX_DELIMITERS = 2000; // characters of the line below a table's head
const FENCE = /^ *(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?= |$)/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)/;
const DELIMITERS = /^ *\|? *:?-+:? *(?:\| *:?-+:? *)*\|? *$/;

// Returns the blocks of a text as objects {node, start}; `start` is the offset of the block in the text.
export function blocks(text) {
  const lines = text.split("\n");
  const starts = [];
  let offset = 0;
  for (const line of lines) {
    starts.push(offset);
    offset += line.length + 1;
  }
  return parse(lines.map(clean), 0).map(({ node, line }) => ({ node, start: starts[line] }));
}

const clean = (line) => line.replace(/\r$/, "").replace(/^[ \t]+/, (space) => space.replaceAll("\t", "    "));
const indentOf = (line) => line.length - line.trimStart().length;
const isBlank = (line) => !line.trim();

function parse(lines, depth) {
  const found = [];
  for (let at = 0; at < lines.length; ) {
    if (isBlank(lines[at])) {
      at += 1;
      continue;
    }
    const [block, end] = blockAt(lines, at, depth);
    found.push({ node: block, line: at });
    at = end;
  }
  return found;
}

const children = (lines, depth) => parse(lines, depth).map(({ node }) => node);

// Returns the block that starts at a line, and the line after it.
function blockAt(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line)) return code(lines, at);
  if (HEADING.test(line)) return [heading(line, depth), at + 1];
  if (RULE.test(line)) return [node("hr"), at + 1];
  if (startsTable(lines, at)) return table(lines, at);
  if (depth < MAX_DEPTH && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < MAX_DEPTH && ITEM.test(line)) return list(lines, at, depth);
  return paragraph(lines, at);
}

// Returns whether a line ends the paragraph before it. A number ends it only if a list starts at 1.
function interrupts(lines, at) {
  const line = lines[at];
  const item = ITEM.exec(line);
  const startsList = item && item[0].length < line.length && !/^\d/.test(item[2].replace(/^1\D/, ""));
  return startsList || [FENCE, HEADING, RULE, QUOTE].some((pattern) => pattern.test(line)) || startsTable(lines, at);
}

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && !isBlank(lines[end]) && !interrupts(lines, end)) end += 1;
  return [node("p", inline(lines.slice(at, end).map((line) => line.trim()).join("\n"))), end];
}

// Returns a heading. Its level counts below the page's own two levels; a heading within a list or a quote is bold text.
function heading(line, depth) {
  const level = HEADING.exec(line)[1].length;
  const text = inline(line.trim().slice(level).trim().replace(/ #+$/, ""));
  return depth ? node("p", [node("strong", text)]) : node(`h${Math.min(6, level + 2)}`, text);
}

function code(lines, at) {
  const [, fence, info] = FENCE.exec(lines[at]);
  const indent = indentOf(lines[at]);
  const content = [];
  let end = at + 1;
  for (; end < lines.length; end += 1) {
    const line = lines[end].trim();
    if (line.length >= fence.length && line === fence[0].repeat(line.length)) break;
    content.push(lines[end].slice(Math.min(indent, indentOf(lines[end]))));
  }
  return [codeBlock(content.join("\n"), /^\S{0,32}/.exec(info.trim())[0]), end + 1];
}

// Returns code with its language and a button to copy it.
export function codeBlock(text, language) {
  const copy = node("button", [], { type: "button", class: "copy-code plain", "data-text": "copyCode" });
  const head = node("div", [node("span", language ? [language] : []), copy], { class: "code-head" });
  return node("div", [head, node("pre", [node("code", text ? [text] : [])], { tabindex: "0" })], { class: "code" });
}

function quote(lines, at, depth) {
  let end = at;
  const content = [];
  for (; end < lines.length && QUOTE.test(lines[end]); end += 1) content.push(lines[end].replace(QUOTE, ""));
  return [node("blockquote", children(content, depth + 1)), end];
}

function list(lines, at, depth) {
  const kind = (mark) => mark.at(-1);
  const first = ITEM.exec(lines[at])[2];
  const items = [];
  let end = at;
  for (let item = ITEM.exec(lines[end]); item && kind(item[2]) === kind(first) && !RULE.test(lines[end]); item = ITEM.exec(lines[end] ?? "")) {
    const content = [lines[end].slice(item[0].length)];
    end = continueItem(lines, end + 1, item, content);
    items.push(node("li", children(content, depth + 1)));
  }
  const start = parseInt(first, 10);
  return [Number.isNaN(start) ? node("ul", items) : node("ol", items, start === 1 ? {} : { start: String(start) }), end];
}

// Adds the lines that belong to an item, and returns the line after them.
function continueItem(lines, at, [start, indent], content) {
  let width = start.trimEnd().length + 1; // the indentation of the item's lines
  for (; at < lines.length; at += 1) {
    const line = lines[at];
    const depth = indentOf(line);
    if (isBlank(line)) content.push("");
    else if (depth >= indent.length + 2) {
      width = Math.min(depth, width);
      content.push(line.slice(width));
    } else if (content.at(-1) && !ITEM.test(line) && !interrupts(lines, at)) content.push(line.trim());
    else break;
  }
  return at;
}

function startsTable(lines, at) {
  const next = lines[at + 1] ?? "";
  if (!lines[at].includes("|") || next.length > MAX_DELIMITERS || !DELIMITERS.test(next)) return false;
  return cells(lines[at]).length === cells(next).length;
}

// Returns the texts of a row's cells. A bar after a backslash is part of a cell.
function cells(line) {
  const row = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return row.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function table(lines, at) {
  const aligns = cells(lines[at + 1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : "left"));
  const row = (line, tag) =>
    node("tr", cells(line).slice(0, aligns.length).map((cell, column) => node(tag, inline(cell), { class: aligns[column] })));
  const rows = [];
  let end = at + 2;
  for (; end < lines.length && !isBlank(lines[end]) && !interrupts(lines, end); end += 1) rows.push(row(lines[end], "td"));
  const content = [node("thead", [row(lines[at], "th")]), node("tbody", rows)];
  return [node("div", [node("table", content)], { class: "table", tabindex: "0", role: "group", "data-label": "table" }), end];
}
