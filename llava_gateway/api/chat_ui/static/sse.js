// Server-sent events.

// A broken connection ends the events without an error: the caller checks whether they are complete.
function endOfStream(error) {
  if (error.name === "AbortError") throw error;
  return { done: true };
}

// Yields the data of each event of a response body. Comments, such as `: keep-alive`, are skipped.
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  for (;;) {
    const { done, value } = await reader.read().catch(endOfStream);
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines.map((line) => line.replace(/\r$/, ""))) {
      if (line.startsWith("data:")) {
        data.push(line.slice(5).replace(/^ /, ""));
      } else if (line === "" && data.length) {
        yield data.join("\n");
        data = [];
      }
    }
  }
}
