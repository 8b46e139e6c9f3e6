// Server-sent events: the data of each, in order. Comments, such as `: keep-alive`, say nothing.

// A connection that breaks ends the events; whether they were whole is for whoever reads them to say.
function ended(error) {
  if (error.name === "AbortError") throw error;
  return { done: true };
}

export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  for (;;) {
    const { done, value } = await reader.read().catch(ended);
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
