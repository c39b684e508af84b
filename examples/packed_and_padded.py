"""Sequences of unequal length in one batch: padded with a mask, packed with cu_seqlens, or split by resets."""

import torch

import ssmn


def main() -> None:
    torch.manual_seed(0)
    lm = ssmn.TextSSMN(ssmn.TextSSMNConfig.preset("tiny", vocab_size=100)).double()
    lengths = [5, 90, 33]
    texts = [torch.randint(100, (1, length)) for length in lengths]
    with torch.no_grad():
        alone = torch.cat([lm(text)[0] for text in texts], 1)

        # Packed: one row, boundaries, a state with one row per segment.
        cu_seqlens = torch.tensor([0, 5, 95, 128])
        packed, state = lm(torch.cat(texts, 1), cu_seqlens=cu_seqlens)
        print("packed", f"{(packed - alone).abs().max().item():.1e}", "positions", state.position.tolist())

        # Padded on the left: a masked step changes nothing and outputs 0.
        longest = max(lengths)
        ids, mask = torch.zeros(3, longest, dtype=torch.int64), torch.zeros(3, longest, dtype=torch.bool)
        for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
            ids[row, longest - length :], mask[row, longest - length :] = text[0], True
        padded, _ = lm(ids, mask=mask)
        print("padded", f"{(padded[mask] - alone[0]).abs().max().item():.1e}")

        # One row after the other, fresh at each start.
        reset = torch.zeros(1, sum(lengths), dtype=torch.bool)
        reset[0, cu_seqlens[:-1]] = True
        restarted, _ = lm(torch.cat(texts, 1), reset=reset)
        print("resets", f"{(restarted - alone).abs().max().item():.1e}")


if __name__ == "__main__":
    main()
