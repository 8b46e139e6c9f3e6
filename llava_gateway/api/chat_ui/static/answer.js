// An answer: its text, its tokens and times, and how it ended.

import { chat } from "./api.js";
import { number, t } from "./language.js";

const STREAM = { stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };

export class Answer {
  model = "";
  system = ""; // the system prompt of its request
  isJson = false;
  text = "";
  tokens = null; // {text, image, completion}
  firstAfter = null; // the time to the first token, in seconds
  speed = null; // tokens per second after the first token
  ending = ""; // a key of texts.js, if the answer is not whole
  error = "";
  done = true;

  // `fields`: those of a record, or of an answer that is to run.
  constructor(fields) {
    Object.assign(this, fields);
  }

  // Returns the answer as a plain object. An answer that still runs counts as stopped.
  record() {
    const { model, system, isJson, text, tokens, firstAfter, speed, ending, error, done } = this;
    return { model, system, isJson, text, tokens, firstAfter, speed, ending: done ? ending : "stopped", error };
  }

  // Streams the answer to a request until it ends, fails or is aborted. `onChange` is called with each piece of text, which may be empty.
  async run(body, signal, onChange) {
    this.done = false;
    const started = performance.now();
    try {
      for await (const chunk of chat({ ...body, ...STREAM }, signal)) onChange(this.#add(chunk, performance.now() - started));
    } catch (error) {
      if (error.name === "AbortError") this.ending = "stopped";
      else this.error = error.message;
    }
    this.done = true;
    onChange("");
  }

  // A line such as "12 text + 576 image + 20 completion tokens · first token after 0.31 s · 45.1 tokens/s"
  get cost() {
    const parts = [
      this.tokens && t("tokens", this.tokens),
      this.firstAfter !== null && t("firstToken", { seconds: number(this.firstAfter, 2) }),
      this.speed && t("speed", { number: number(this.speed, 1) }),
      this.ending && t(this.ending),
    ];
    return parts.filter(Boolean).join(" · ");
  }

  // Adds a chunk that came after `milliseconds`, and returns its text.
  #add({ usage, choices: [choice] }, milliseconds) {
    if (usage) {
      const { text_tokens: text, image_tokens: image } = usage.prompt_tokens_details;
      this.tokens = { text, image, completion: usage.completion_tokens };
    }
    if (choice?.finish_reason === "length") this.ending = "cutOff";
    const text = choice?.delta.content ?? "";
    if (!text) return "";
    if (this.firstAfter === null) {
      this.firstAfter = milliseconds / 1000;
      this.tokensAtFirst = this.tokens?.completion ?? 0;
    }
    const generated = (this.tokens?.completion ?? 0) - this.tokensAtFirst;
    this.speed = generated > 0 ? generated / (milliseconds / 1000 - this.firstAfter) : null;
    this.text += text;
    return text;
  }
}
