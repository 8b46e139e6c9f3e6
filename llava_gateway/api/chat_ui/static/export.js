// A conversation as a file: JSON with all its data, or Markdown to read. Images are part of the file.

import { record, titleOf } from "./conversation.js";
import { t } from "./language.js";

export function exportJson(conversation) {
  const { title, system, isJson, turns } = record(conversation);
  download(conversation, "json", "application/json", JSON.stringify({ title: title || titleOf(conversation), system, isJson, turns }, null, 2));
}

export function exportMarkdown(conversation) {
  const parts = [`# ${nameOf(conversation)}`];
  if (conversation.system) parts.push(conversation.system);
  for (const { question, answers } of conversation.turns) {
    const images = question.images.map(({ url, name }) => `![${name.replace(/[[\]\\\n]/g, " ")}](${url})`);
    parts.push(`## ${t("question")}`, ...images, question.text);
    for (const { model, text, isJson } of answers) parts.push(`## ${model}`, isJson ? `\`\`\`json\n${text}\n\`\`\`` : text);
  }
  download(conversation, "md", "text/markdown", `${parts.filter(Boolean).join("\n\n")}\n`);
}

const nameOf = (conversation) => titleOf(conversation).replace(/\s+/g, " ").trim() || t("untitled");

function download(conversation, extension, type, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = `${nameOf(conversation).replace(/[^\p{L}\p{N} -]/gu, "").slice(0, 60).trim() || "conversation"}.${extension}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the download has read the content by then
}
