// An answer while it streams: its text, its tokens and times, and how it ended.

import { chat } from "./api.js";

const STREAM = { stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };

export class Answer {
  constructor(body) {
    this.body = body;
    this.text = "";
    this.usage = null;
    this.error = "";
    this.ending = "";
    this.done = false;
  }

  // Streams the answer until it ends, fails or is aborted. `onChange` is called with each piece of text, which may be empty.
  async run(signal, onChange) {
    this.started = performance.now();
    try {
      for await (const chunk of chat({ ...this.body, ...STREAM }, signal)) onChange(this.#add(chunk));
    } catch (error) {
      if (error.name === "AbortError") this.ending = "stopped";
      else this.error = error.message;
    }
    this.done = true;
    onChange("");
  }

  // A line such as "12 text + 576 image + 20 completion tokens · first token after 0.31 s · 45.1 tokens/s"
  get cost() {
    const parts = [];
    if (this.usage) {
      const { text_tokens: text, image_tokens: image } = this.usage.prompt_tokens_details;
      parts.push(`${text} text + ${image} image + ${this.usage.completion_tokens} completion tokens`);
    }
    if (this.first) parts.push(`first token after ${((this.first - this.started) / 1000).toFixed(2)} s`);
    const generated = (this.usage?.completion_tokens ?? 0) - this.tokensAtFirst;
    if (generated > 0) parts.push(`${((generated * 1000) / (this.last - this.first)).toFixed(1)} tokens/s`);
    return [...parts, this.ending].filter(Boolean).join(" · ");
  }

  #add(chunk) {
    this.usage = chunk.usage ?? this.usage;
    const choice = chunk.choices[0];
    if (choice?.finish_reason === "length") this.ending = "ended at max tokens";
    const text = choice?.delta.content ?? "";
    if (!text) return "";
    this.last = performance.now();
    if (!this.first) {
      this.first = this.last;
      this.tokensAtFirst = this.usage?.completion_tokens ?? 0;
    }
    this.text += text;
    return text;
  }
}
