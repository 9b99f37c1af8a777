// The page's data: the JSON header, and the arrays that lie in the block where `layout` says.

async function readArrays(text, layout) {
  const packed = Uint8Array.from(atob(text.trim()), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const block = await new Response(stream).arrayBuffer();
  const kinds = { Uint8Array, Uint16Array, Uint32Array, Float32Array };
  const arrays = {};
  for (const [name, [kind, start, length]] of Object.entries(layout)) {
    arrays[name] = new kinds[kind](block, start, length);
  }
  return arrays;
}
